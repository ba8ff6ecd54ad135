"""From runs to one codec."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from focalcodec_jax.errors import CheckpointError, ConfigError
from focalcodec_jax.nn.codec import FocalCodec
from focalcodec_jax.pretrained import load_pretrained, save_pretrained

from .checkpoint import load_params
from .run_config import load_config
from .start import CODEC, CONFIG


def export(runs: Sequence[Path], output: Path, *, step: int | None = None, dtype: str = "float32") -> Iterator[str]:
    """Write the codec whose parts these runs have trained: each run's parts, and the rest as the first run began.

    The parts of one codec may come from runs that began with different ones, such as one decoder for all token rates:
    each run must have passed its audio through the parts that the codec will have.

    Args:
        step: of a single run; by default the best by validation, or else the last.
        dtype: of the weights in the file; they are read back as float32.

    Yields:
        What was taken from where, in words.

    Raises:
        CheckpointError: a folder is no run, holds no such checkpoint, or was trained with other parts than the codec's.
        ConfigError: two runs train the same part, their parts do not join, or a step is asked of several runs.
    """
    if step is not None and len(runs) > 1:
        raise ConfigError("--step is for one run; several have steps of their own")
    began, trained, taken = {}, {}, {}
    for run in runs:
        if not (run / CODEC / "config.json").is_file():
            raise CheckpointError(f"{run} is not a run folder: it holds no {CODEC}/config.json")
        began[run] = load_pretrained(run / CODEC)
        trained[run], at = load_params(run, step)
        twice = sorted(taken.keys() & trained[run])
        if twice:
            raise ConfigError(f"{taken[twice[0]]} and {run} both trained {', '.join(twice)}; export one of them")
        taken |= dict.fromkeys(trained[run], run)
        yield f"{', '.join(trained[run])}: step {at} of {run}"
    model, variables = began[runs[0]]
    parts, params = {}, dict(variables["params"])
    for run, own in trained.items():
        params |= own
        parts |= {part: getattr(began[run][0].config, part) for part in own}
        if "compressor" in own:
            parts["quantizer"] = began[run][0].config.quantizer
    model = FocalCodec(dataclasses.replace(model.config, **parts))
    for run, (started, variables) in began.items():
        passed = load_config(run / CONFIG).passed
        alike = [
            getattr(started.config, part) == getattr(model.config, part)
            and (part in trained[run] or _same(variables["params"][part], params[part]))
            for part in passed
        ]
        if not all(alike):
            other = ", ".join(part for part, same in zip(passed, alike, strict=True) if not same)
            raise CheckpointError(f"{run} was trained with another {other} than the codec would have; they do not fit")
    names = {f"trained_{part}": str(run) for part, run in taken.items()}
    save_pretrained(output, model, {"params": params}, metadata=names, dtype=dtype)
    yield f"codec in {output}"


def _same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
