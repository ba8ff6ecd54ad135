"""Meshes: a rule for every array, the same first step on every mesh, and memory split over devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec as P
from support.fingerprint import first_step
from support.training import free_port, recordings, tiny

from focalcodec_jax.config import PRESETS
from focalcodec_jax.errors import ConfigError
from focalcodec_jax.train import sharding
from focalcodec_jax.train.footprint import abstract_run, state_bytes

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.parametrize("preset", ["focalcodec_50hz", "focalcodec_50hz_4k_causal"])
def test_rules_cover_every_array_and_fsdp_splits_memory(preset: str):
    """Each of eight devices holds about an eighth of the parameters and moments of full-size models."""
    stages = {
        "quantizer": {},
        "decoder": {"discriminator": {"width": 1.0, "periods": [2, 3, 5, 7, 11], "num_scales": 3}},
    }
    if PRESETS[preset].sample_rate_out_hz != 16_000:
        del stages["decoder"]
    mesh = AbstractMesh((1, 8, 1), sharding.AXES)
    for stage, changes in stages.items():
        _, state, frozen = abstract_run(tiny(stage, model={"preset": preset, "codec": None}, **changes))
        for tree in (state, frozen):
            assert state_bytes(tree, mesh) <= state_bytes(tree) / 6
        assert all(
            leaf.shape == () or sharding.rule(sharding.path_name(path)) is not None
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        )


def test_moments_are_sharded_as_their_parameters():
    _, state, _ = abstract_run(tiny("decoder"))
    sizes = {"data": 1, "fsdp": 4, "tensor": 2}
    specs = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        specs[sharding.path_name(path)] = sharding.spec(sharding.path_name(path), leaf.shape, sizes)
    kernels = [path for path in specs if path.startswith("/params/") and path.endswith("pwconv1/kernel")]
    assert kernels
    for path in kernels:
        moments = [other for other in specs if other.endswith(path.removeprefix("/params")) and "/moments/" in other]
        assert len(moments) == 2
        assert {specs[other] for other in moments} == {specs[path]} == {P("fsdp", "tensor")}


def test_an_axis_that_does_not_divide_stays_whole():
    sizes = {"data": 1, "fsdp": 8, "tensor": 2}
    assert sharding.spec("/compressor/out_proj/kernel", (256, 13), sizes) == P("fsdp")
    assert sharding.spec("/decompressor/in_proj/kernel", (13, 256), sizes) == P()
    assert sharding.spec("/decoder/backbone/layers_0/pwconv1/kernel", (12, 64), sizes) == P(None, "tensor")


def test_a_path_without_a_rule_is_an_error():
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
    tree = {"decoder": {"novel": {"weights": jnp.ones((2, 2))}, "proj": {"kernel": jnp.ones((2, 2))}}}
    with pytest.raises(ConfigError, match="there is no sharding rule for /decoder/novel/weights; add one to RULES"):
        sharding.shardings(tree, mesh)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "message"),
    [
        ({"fsdp": 3}, 8, r"does not fit 8 device\(s\)"),
        ({"data": 2, "fsdp": 2}, 8, r"does not fit 8 device\(s\)"),
        ({"data": 16}, 16, r"does not fit 8 device\(s\)"),
        ({"data": 4, "fsdp": 2}, 12, r"batch of 12 cannot be divided evenly over data × fsdp = 8"),
    ],
)
def test_impossible_meshes_are_named(sizes: dict, batch_size: int, message: str):
    config = tiny(mesh=sizes).mesh
    with pytest.raises(ConfigError, match=message):
        sharding.make_mesh(config, batch_size, [object()] * 8)


# --- the first step --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return recordings(tmp_path_factory.mktemp("data") / "speech")


def start(folder: Path, stage: str, meshes: list[str], devices: int, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "support.fingerprint", str(folder), stage, *meshes]
    base = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(SUPPORT.parent)}
    return subprocess.Popen(command, env={**os.environ, **base, **environment}, stdout=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen) -> dict:
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return json.loads(outputs[0].splitlines()[-1])  # Collectives between processes print lines before this one.


@pytest.fixture(scope="module")
def one_device(folder: Path) -> dict:
    devices = jax.devices()[:1]
    return {stage: first_step(str(folder), stage, "1,1,1", devices) for stage in ("quantizer", "end-to-end")}


def assert_same_step(found: dict, expected: dict) -> None:
    """The reference is the same step on one device, so there are no stored numbers to renew."""
    assert found["metrics"].keys() == expected["metrics"].keys()
    for name, value in expected["metrics"].items():
        # Adam's first step takes the sign of each gradient, including those that are rounding errors.
        tolerance = 2e-5 if name.endswith("update_norm") else 1e-5
        assert found["metrics"][name] == pytest.approx(value, rel=tolerance, abs=1e-6), name


def test_first_step_is_the_same_on_eight_devices(folder: Path, one_device: dict):
    """Every loss, gradient norm and update norm agrees, with tensor parallelism too."""
    found = finish(start(folder, "end-to-end", ["1,8,1", "2,2,2"], 8))
    for step in found.values():
        assert_same_step(step, one_device["end-to-end"])
        assert set(step["collectives"]) >= {"all-reduce", "all-gather"}
    assert found["1,8,1"]["held_bytes"] < found["2,2,2"]["held_bytes"] < one_device["end-to-end"]["held_bytes"]


def test_first_step_is_the_same_in_two_processes(folder: Path, one_device: dict):
    address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    found = finish(
        *(start(folder, "quantizer", ["8,1,1", "2,2,2"], 4, **address, JAX_PROCESS_ID=str(i)) for i in range(2))
    )
    for step in found.values():
        assert_same_step(step, one_device["quantizer"])
    assert found["8,1,1"]["collectives"] == ["all-reduce"]
    assert found["8,1,1"]["bytes"] == found["8,1,1"]["all_bytes"]
