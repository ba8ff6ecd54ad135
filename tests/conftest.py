"""Shared fixtures. Shapes in annotations are checked while the tests run."""

import os
import tempfile

# Compiling is most of what small tests do, and takes half as long without optimisation. `XLA_FLAGS= pytest` optimises,
# as users' programs are.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
# What one test has compiled serves the others, in other processes too. xdist's workers inherit this.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="focalcodec-jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from jaxtyping import install_import_hook

install_import_hook("focalcodec_jax", "typecheck.check")

from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from focalcodec_jax import FocalCodec, load_pretrained  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("large") is None)


@pytest.fixture(params=CODECS)
def golden(request) -> Golden:
    return load_golden(request.param)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference over the largest value of the reference `b`."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())
