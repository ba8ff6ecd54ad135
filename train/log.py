"""Where a run's numbers go: `metrics.jsonl` always, TensorBoard and Weights & Biases if asked for."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import require
from focalcodec_jax.files import write_lines

from .run_config import LogConfig

METRICS = "metrics.jsonl"
WANDB_ID = "wandb_id"
"""File in the run folder that says which run on Weights & Biases this is, so that it goes on there as well."""


class Log:
    """Scalars, audio and pictures of a run. On processes other than the first it writes nothing."""

    def __init__(self, run_dir: Path, config: LogConfig, run_config: Mapping[str, Any], *, step: int, first: bool):
        """
        Args:
            step: where the run begins; lines of later steps, of a run that was cut off, are dropped.
        """
        self.file = self.board = self.wandb = None
        if not first:
            return
        path = run_dir / METRICS
        if path.exists():
            write_lines(path, [line for line in read_lines(path) if line["step"] <= step])
        self.file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open as long as the run
        if config.tensorboard:
            import tensorboardX

            self.board = tensorboardX.SummaryWriter(str(run_dir / "tensorboard"))
        if config.wandb:
            import wandb

            known_as = run_dir / WANDB_ID
            self.wandb = wandb.init(
                project=config.wandb,
                dir=str(run_dir),
                name=run_dir.name,
                id=known_as.read_text() if known_as.exists() else None,
                resume="allow",
                config=dict(run_config),
            )
            known_as.write_text(self.wandb.id)

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line: step, split, and every scalar by name."""
        if self.file is None:
            return
        rounded = {name: float(f"{value:.9g}") for name, value in sorted(values.items())}
        self.file.write(json.dumps({"step": step, "split": split, **rounded}) + "\n")
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"{split}/{name}", value, step)
        if self.wandb:
            self.wandb.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def event(self, step: int, what: str, **details: Any) -> None:
        """A line that is no measurement: a resumption, a preemption, a recording that could not be read."""
        if self.file is not None:
            self.file.write(json.dumps({"step": step, "split": "event", "event": what, **details}) + "\n")

    @property
    def shows_examples(self) -> bool:
        return bool(self.board or self.wandb)

    def example(self, step: int, name: str, real: np.ndarray, fake: np.ndarray) -> None:
        """A recording and its reconstruction, both (samples,) at 16 kHz, as audio and as spectrograms."""
        from focalcodec_jax import plots as picture

        image = picture.spectrogram_pair(real, fake, SAMPLE_RATE_HZ)
        if self.board:
            self.board.add_image(f"spectrogram/{name}", image, step, dataformats="HWC")
            for kind, sig in (("real", real), ("fake", fake)):
                self.board.add_audio(f"{name}/{kind}", np.clip(sig, -1, 1), step, SAMPLE_RATE_HZ)
        if self.wandb:
            import wandb

            audio = {f"{name}/{kind}": wandb.Audio(s, SAMPLE_RATE_HZ) for kind, s in (("real", real), ("fake", fake))}
            self.wandb.log({**audio, f"spectrogram/{name}": wandb.Image(image)}, step=step)

    def close(self) -> None:
        for sink in (self.file, self.board):
            if sink is not None:
                sink.close()
        if self.wandb is not None:
            self.wandb.finish()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a `metrics.jsonl`; a last line that was cut off is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def usage(counts: np.ndarray) -> dict[str, float]:
    """Share of the codes that were used, and the entropy of their use relative to all alike."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return {
        "code_usage": len(share) / len(counts),
        "normalised_entropy": float(-(share * np.log(share)).sum() / math.log(len(counts))),
    }


def check_extras(config: LogConfig) -> None:
    """Refuse to begin without the packages that a log needs.

    Raises:
        ConfigError: says how to install one.
    """
    if config.tensorboard:
        require("log.tensorboard", "tensorboard", "tensorboardX")
    if config.wandb:
        require("log.wandb", "wandb", "wandb")
