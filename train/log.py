"""Log of a run: `metrics.jsonl`, and optionally TensorBoard and Weights & Biases."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import require
from focalcodec_jax.files import write_lines

from .sections import LogConfig

METRICS = "metrics.jsonl"
WANDB_ID = "wandb_id"
"""File in the run folder with the id of the run on Weights & Biases. A resumed run uses the same id."""


class Log:
    """Log of scalars, audio and images of a run.

    Args:
        run_dir: run folder.
        config: enabled logs.
        run_config: configuration of the run, for Weights & Biases.
        step: step that the run starts from. Lines of later steps, which an interrupted run wrote, are removed.
        first: whether this is the first process. Other processes write no log.
    """

    def __init__(self, run_dir: Path, config: LogConfig, run_config: Mapping[str, Any], *, step: int, first: bool):
        self.file = self.board = self.wandb = None
        if not first:
            return
        path = run_dir / METRICS
        if path.exists():
            write_lines(path, [line for line in read_lines(path) if line["step"] <= step])
        self.file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - stays open during the run
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
        """Write a line with the step, the split, and all scalars by name."""
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
        """Write a line about an event, such as a resumption, a stop, or an unreadable recording."""
        if self.file is not None:
            self.file.write(json.dumps({"step": step, "split": "event", "event": what, **details}) + "\n")

    @property
    def shows_examples(self) -> bool:
        """Whether a log is enabled to which `example` writes."""
        return bool(self.board or self.wandb)

    def example(self, step: int, name: str, real: np.ndarray, fake: np.ndarray) -> None:
        """Write a recording and its reconstruction, (samples,) at 16 kHz, as audio and as spectrograms."""
        from focalcodec_jax import plots

        image = plots.spectrogram_pair(real, fake, SAMPLE_RATE_HZ)
        if self.board:
            self.board.add_image(f"spectrogram/{name}", image, step, dataformats="HWC")
            for kind, sig in (("real", real), ("fake", fake)):
                self.board.add_audio(f"{name}/{kind}", np.clip(sig, -1, 1), step, SAMPLE_RATE_HZ)
        if self.wandb:
            import wandb

            audio = {f"{name}/{kind}": wandb.Audio(s, SAMPLE_RATE_HZ) for kind, s in (("real", real), ("fake", fake))}
            self.wandb.log({**audio, f"spectrogram/{name}": wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Close all files and finish the run on Weights & Biases."""
        for sink in (self.file, self.board):
            if sink is not None:
                sink.close()
        if self.wandb is not None:
            self.wandb.finish()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a `metrics.jsonl`, up to the first incomplete line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def check_extras(config: LogConfig) -> None:
    """Check that the packages for the configured logs are installed.

    Raises:
        ConfigError: a package is missing. The message says how to install it.
    """
    if config.tensorboard:
        require("log.tensorboard", "tensorboard", "tensorboardX")
    if config.wandb:
        require("log.wandb", "wandb", "wandb")
