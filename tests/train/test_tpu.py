"""The training step compiles for a TPU pod. This needs no TPU.

Run with `JAX_PLATFORMS=cpu pytest -m tpu` where jax[tpu] is installed.
"""

import importlib.util
from pathlib import Path

import pytest
from support.training import tiny

pytestmark = pytest.mark.tpu


def test_small_step_compiles_for_sixteen_chips():
    pytest.importorskip("libtpu", reason="jax[tpu] is not installed")
    from jax.experimental import topologies

    path = Path(__file__).parents[2] / "benchmarks" / "pods.py"
    spec = importlib.util.spec_from_file_location("pods", path)
    assert spec is not None
    assert spec.loader is not None
    pods = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pods)

    devices = list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices)
    config = tiny("decoder", data={"batch_size": 16}, mesh={"fsdp": 8})
    found = pods.compile_step(config, devices, seconds=0.5)
    assert found["chips"] == 16
    assert 0 < found["temporary_gib"] < 1
    assert found["collectives"].keys() >= {"all-gather", "all-reduce"}
