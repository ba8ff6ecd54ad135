"""Combine the parts that training runs have trained into one codec."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from focalcodec_jax.errors import CheckpointError, ConfigError
from focalcodec_jax.files import one_or_more
from focalcodec_jax.nn.codec import FocalCodec
from focalcodec_jax.pretrained import load_pretrained, save_pretrained

from .checkpoint import load_params
from .run_config import load_config
from .stages import merge_params
from .start import CODEC, CONFIG


@dataclass(frozen=True)
class TrainedParts:
    """The parts of a codec that come from one run."""

    run: Path
    parts: tuple[str, ...]
    step: int


@dataclass(frozen=True)
class FromRunsReport:
    """Result of `codec_from_runs`."""

    output: Path
    """Folder of the codec."""
    taken: tuple[TrainedParts, ...]


def codec_from_runs(
    runs: str | Path | Sequence[str | Path], output: str | Path, *, step: int | None = None, dtype: str = "float32"
) -> FromRunsReport:
    """Write a codec with the parts that these runs have trained. Other parts come from the codec of the first run.

    The runs may have started from different codecs. For example, one decoder serves all token rates. The parts that
    audio passed through in a run must be equal to those of the resulting codec.

    Args:
        runs: run folders.
        output: folder to write the codec to, in the layout of `save_pretrained`.
        step: step of the checkpoint, for a single run. None selects the checkpoint with the best validation loss, or
            the newest one if the run has no validation.
        dtype: dtype of the weights in the file. They are read back as float32.

    Raises:
        CheckpointError: a folder is not a run, lacks the checkpoint, or was trained with parts that differ from those
            of the codec.
        ConfigError: two runs trained the same part, or `step` is given for several runs.
    """
    folders, output = [Path(run) for run in one_or_more(runs)], Path(output)
    if not folders:
        raise ConfigError("no run folders are given")
    if step is not None and len(folders) > 1:
        message = "a step can only be chosen for a single run"
        raise ConfigError(message, parameter="step")
    started = {run: _started_from(run) for run in folders}
    trained, taken = _trained_parts(folders, step)
    model, variables = started[folders[0]]
    configs: dict[str, Any] = {}
    params = variables["params"]
    for run, own in trained.items():
        params = merge_params(params, own)
        configs |= {part: getattr(started[run][0].config, part) for part in own}
        if "compressor" in own:
            configs["quantizer"] = started[run][0].config.quantizer
    model = FocalCodec(dataclasses.replace(model.config, **configs))
    for run, (other, variables) in started.items():
        _check_fits(run, other, variables["params"], set(trained[run]), model, params)
    metadata = {f"trained_{part}": str(item.run) for item in taken for part in item.parts}
    save_pretrained(output, model, {"params": params}, metadata=metadata, dtype=dtype)
    return FromRunsReport(output, taken)


def _started_from(run: Path) -> tuple[FocalCodec, Any]:
    if not (run / CODEC / "config.json").is_file():
        raise CheckpointError(f"{run} is not a run folder: it contains no {CODEC}/config.json")
    return load_pretrained(run / CODEC)


def _trained_parts(runs: Sequence[Path], step: int | None) -> tuple[dict[Path, Any], tuple[TrainedParts, ...]]:
    """Parameters by run, and a record of each run."""
    trained, taken, owner = {}, [], {}
    for run in runs:
        params, at = load_params(run, step)
        twice = sorted(owner.keys() & params)
        if twice:
            raise ConfigError(f"{owner[twice[0]]} and {run} both trained {', '.join(twice)}; export one of them")
        trained[run] = params
        owner |= dict.fromkeys(params, run)
        taken.append(TrainedParts(run, tuple(params), at))
    return trained, tuple(taken)


def _check_fits(
    run: Path, started: FocalCodec, before: Mapping[str, Any], trained: set[str], model: FocalCodec, params: Any
) -> None:
    """Check that the parts that audio passed through in a run are those of the codec."""
    other = [
        part
        for part in load_config(run / CONFIG).definition.passes
        if getattr(started.config, part) != getattr(model.config, part)
        or (part not in trained and not _equal(before[part], params[part]))
    ]
    if other:
        raise CheckpointError(
            f"{run} was trained with another {', '.join(other)} than the codec would have; they do not fit"
        )


def _equal(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
