"""The golden models, and what the original computed with them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from focalcodec_jax import FocalCodec, load_pretrained

GOLDEN = Path(__file__).parents[1] / "golden"
CODECS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json") if not path.parent.name.startswith("wavlm"))


@dataclass(frozen=True)
class Golden:
    """A reference model and what the original computed with it, by input length."""

    name: str
    model: FocalCodec
    variables: Any
    cases: dict[int, dict[str, np.ndarray]]
    apply: Callable[..., np.ndarray]
    """apply(method, x, lengths=None), jitted."""


OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
"""Compiler options that compile a program as users do, whatever XLA_FLAGS says. Both are XLA's defaults."""


def optimised(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for a function whose results are compared with reference values."""
    return jax.jit(function, compiler_options=OPTIMISED)


def applied(model: FocalCodec, variables: Any) -> Callable[..., Any]:
    """apply(method, x, lengths=None), jitted, arrays in and out."""

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
    """Largest difference over the largest value of the reference `b`."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())
