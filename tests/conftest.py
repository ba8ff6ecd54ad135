"""Shared fixtures. Shapes in annotations are checked while the tests run."""

import os
import tempfile

from support.compiling import UNOPTIMISED_FLAGS

# Compiling takes most of the time of small tests. Tests that compare numbers with the original's compile their programs
# with optimisation (support.golden.optimised). `XLA_FLAGS= pytest` optimises all programs.
os.environ.setdefault("XLA_FLAGS", UNOPTIMISED_FLAGS)
# Tests share compiled programs, also between the processes of xdist, which inherit this folder. CI sets a folder that
# several runs of pytest share.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="focalcodec-jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import support.typecheck
from jaxtyping import install_import_hook

install_import_hook("focalcodec_jax", f"{support.typecheck.__name__}.check")

import pytest  # noqa: E402
from support.golden import CODECS, Golden, load_golden  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the longest tests first, so that all workers end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("large") is None)


@pytest.fixture(scope="module", params=CODECS)  # the scope puts the tests of one codec next to each other
def golden(request) -> Golden:
    return load_golden(request.param)
