"""The golden models, and the values that the original computed with them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from focalcodec_jax import FocalCodec, load_pretrained
from support.compiling import OPTIMISED

GOLDEN = Path(__file__).parents[1] / "golden"
CODECS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json") if not path.parent.name.startswith("wavlm"))


@dataclass(frozen=True)
class Golden:
    """A reference model, and the arrays that the original computed with it by input length."""

    name: str
    model: FocalCodec
    variables: Any
    cases: dict[int, dict[str, np.ndarray]]
    apply: Callable[..., np.ndarray]
    """apply(method, x, lengths=None), jitted with the process's compiler flags."""


def optimised(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` with XLA's default optimisations, which prevail over XLA_FLAGS."""
    return jax.jit(function, compiler_options=OPTIMISED)


def applied(model: FocalCodec, variables: Any) -> Callable[..., Any]:
    """A jitted apply(method, x, lengths=None) that takes and returns NumPy arrays."""

    def step(variables, method, x, lengths):
        args = (x,) if lengths is None else (x, lengths)
        return model.apply(variables, *args, method=method)

    jitted = jax.jit(step, static_argnums=1)

    def apply(method, x, lengths=None):
        return jax.tree.map(np.asarray, jitted(variables, method, x, lengths))

    return apply


@cache
def load_golden(name: str) -> Golden:
    model, variables = load_pretrained(GOLDEN / name)
    cases: dict[int, dict[str, np.ndarray]] = {}
    for key, array in load_file(GOLDEN / name / "io.safetensors").items():
        length, field = key.split(".", 1)
        cases.setdefault(int(length), {})[field] = array
    return Golden(name, model, variables, cases, applied(model, variables))


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference, divided by the largest absolute value of the reference `b`."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())
