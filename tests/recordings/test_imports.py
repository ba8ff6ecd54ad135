"""Processes that only read audio or tokens do not import JAX, rich or typer."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("recordings.readers", {"jax", "flax", "pyarrow", "typer", "rich"}),
        ("recordings.sources", {"jax", "flax", "pyarrow", "typer", "rich"}),
        *((f"tokens.{name}", {"jax", "flax", "typer", "rich"}) for name in ("text", "files", "dataset", "formats")),
    ],
)
def test_imports(module: str, absent: set[str]):
    script = f"import sys, focalcodec_jax.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not absent & set(loaded.split())
