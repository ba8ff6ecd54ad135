"""From runs to one codec."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from focalcodec_jax.errors import CheckpointError, ConfigError
from focalcodec_jax.pretrained import load_pretrained, save_pretrained
from focalcodec_jax.train.checkpoint import load_params
from focalcodec_jax.train.start import CODEC


def export(runs: Sequence[Path], output: Path, *, step: int | None = None, dtype: str = "float32") -> Iterator[str]:
    """Write the codec whose parts these runs have trained: the first run's beginning, and each run's parts.

    Args:
        step: of a single run; by default the best by validation, or else the last.
        dtype: of the weights in the file; they are read back as float32.

    Yields:
        What was taken from where, in words.

    Raises:
        CheckpointError: a folder is no run, holds no such checkpoint, or began from another codec than the first.
        ConfigError: two runs train the same part, or a step is asked of several runs.
    """
    if step is not None and len(runs) > 1:
        raise ConfigError("--step is for one run; several have steps of their own")
    taken: dict[str, Path] = {}
    model = params = None
    for run in runs:
        if not (run / CODEC / "config.json").is_file():
            raise CheckpointError(f"{run} is not a run folder: it holds no {CODEC}/config.json")
        started, variables = load_pretrained(run / CODEC)
        trained, at = load_params(run, step)
        if model is None or params is None:
            model, params = started, dict(variables["params"])
        elif started.config != model.config or not _same(params, variables["params"], {*taken, *trained}):
            raise CheckpointError(f"{run} began from another codec than {runs[0]}; their parts do not fit together")
        twice = sorted(taken.keys() & trained)
        if twice:
            raise ConfigError(f"{taken[twice[0]]} and {run} both trained {', '.join(twice)}; export one of them")
        params |= trained
        taken |= dict.fromkeys(trained, run)
        yield f"{', '.join(trained)}: step {at} of {run}"
    assert model is not None
    steps = {f"trained_{part}": str(run) for part, run in taken.items()}
    save_pretrained(output, model, {"params": params}, metadata=steps, dtype=dtype)
    yield f"codec in {output}"


def _same(a, b, but: set[str]) -> bool:
    """Whether the parts that neither run trained are equal."""
    return all(
        all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a[part]), jax.tree.leaves(b[part]), strict=True))
        for part in a.keys() - but
    )
