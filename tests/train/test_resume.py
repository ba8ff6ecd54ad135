"""Runs that are killed, stopped, or moved to other devices resume exactly."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from support.training import free_port, measured, recordings, tiny

from focalcodec_jax.errors import CheckpointError
from focalcodec_jax.train.checkpoint import Checkpoints
from focalcodec_jax.train.sections import CheckpointConfig
from focalcodec_jax.train.start import as_plain_yaml
from focalcodec_jax.train.step import DiscriminatorState, TrainState

STEPS = 60


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """Recordings, a configuration that uses them, and a cache of compiled programs for all runs in this module."""
    folder = tmp_path_factory.mktemp("workshop")
    data = {"train": [str(recordings(folder / "speech"))], "workers": 1}
    config = tiny(data=data, steps=STEPS, checkpoint={"every": 7})
    (folder / "run.yaml").write_text(yaml.safe_dump(as_plain_yaml(config.to_dict())))
    return folder


def start(workshop: Path, run_dir: Path, *overrides: str, devices: int = 1, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "focalcodec_jax.train", "run", str(workshop / "run.yaml"), *overrides]
    base = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(workshop / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [*command, "--run-dir", str(run_dir)],
        env={**os.environ, **base, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def finish(*processes: subprocess.Popen) -> str:
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said[0][-3000:]
    return said[0]


def wait_until(ready: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait for a condition while a process runs."""
    deadline = time.monotonic() + 200
    while process.poll() is None and not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be stopped"


def at_step(run_dir: Path, step: int) -> Callable[[], bool]:
    path = run_dir / "metrics.jsonl"
    return lambda: path.is_file() and f'{{"step": {step}, ' in path.read_text()


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def uninterrupted(workshop: Path) -> list[dict[str, Any]]:
    finish(start(workshop, workshop / "uninterrupted"))
    found = measured(workshop / "uninterrupted", "train")
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    return found


def test_killed_at_random_steps(workshop: Path, uninterrupted: list):
    """After three times kill −9, the log is equal bit for bit, and no worker process is left."""
    run_dir, chance = workshop / "killed", random.Random(0)
    for first in (2, 20, 38):
        process = start(workshop, run_dir)
        wait_until(at_step(run_dir, first + chance.randrange(15)), process)
        workers = children(process.pid)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        assert workers or not Path("/proc/self/task").exists()
        deadline = time.monotonic() + 30
        while any(map(lives, workers)):
            assert time.monotonic() < deadline, "a worker outlives its run"
            time.sleep(0.05)
    finish(start(workshop, run_dir))
    assert measured(run_dir, "train") == uninterrupted


def test_asked_to_stop(workshop: Path, uninterrupted: list):
    """After SIGTERM to all processes, workers included, the run saves, reports it and exits with 0."""
    run_dir = workshop / "stopped"
    process = start(workshop, run_dir)
    wait_until(at_step(run_dir, 10), process)
    os.killpg(process.pid, signal.SIGTERM)
    assert "the same command continues from there" in finish(process)
    last = measured(run_dir, "train")[-1]["step"]
    assert 10 <= last < STEPS
    assert (run_dir / "checkpoints" / str(last)).is_dir()
    assert f"resuming from step {last}" in finish(start(workshop, run_dir))
    assert measured(run_dir, "train") == uninterrupted


def test_other_devices_and_processes(workshop: Path, uninterrupted: list):
    """8 → 4 devices → 2 processes of 2: the first step on each agrees, later ones drift by rounding."""
    run_dir = workshop / "moved"
    finish(start(workshop, run_dir, "steps=7", "mesh={data: 2, fsdp: 4}", devices=8))
    finish(start(workshop, run_dir, "steps=14", "mesh={fsdp: 2}", devices=4))
    address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    changes = ("steps=21", "mesh={tensor: 2}")
    finish(*(start(workshop, run_dir, *changes, devices=2, **address, JAX_PROCESS_ID=str(i)) for i in range(2)))
    found = measured(run_dir, "train")
    assert [line["step"] for line in found] == list(range(1, 22))
    for first, tolerance in ((0, 1e-5), (7, 1e-5), (14, 1e-4)):  # The third starts after fourteen steps of drift.
        for name in ("loss/total", "loss/feature", "generator/gradient_norm"):
            assert found[first][name] == pytest.approx(uninterrupted[first][name], rel=tolerance), (first, name)
    assert found[-1]["loss/total"] == pytest.approx(uninterrupted[20]["loss/total"], rel=1e-3)


# --- checkpoints -----------------------------------------------------------------------------------------------


def state(value: float, size: int = 30_000) -> TrainState:
    return TrainState(jnp.int32(value), {"decoder": jnp.full(size, value)}, {"mu": jnp.zeros(3)})


def test_a_full_disk_leaves_earlier_checkpoints(tmp_path: Path):
    """A limit on file size simulates the full disk. The write fails in the same way, with another error number."""
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state(1), {"host": {}}, None)
    noise = {"decoder": np.random.default_rng(0).normal(size=30_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with (
            pytest.raises((OSError, CheckpointError), match=r"checkpoints|too large"),
            Checkpoints(tmp_path, CheckpointConfig()) as checkpoints,
        ):
            checkpoints.save(2, replace(state(2), params=noise), {"host": {}}, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.latest == 1
        restored, _ = checkpoints.restore(jax.eval_shape(lambda: state(0)))
        np.testing.assert_array_equal(restored.params["decoder"], state(1).params["decoder"])


def test_the_last_the_best_and_every_so_many_are_kept(tmp_path: Path):
    config = CheckpointConfig(every=1, keep_last=2, keep_every=4)
    with Checkpoints(tmp_path, config) as checkpoints:
        for step, loss in enumerate([None, 0.5, 0.9, None, 0.7, None, None], 1):
            checkpoints.save(step, state(step), {"host": {"rate_factor": step}}, loss)
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.latest == 7
        assert checkpoints.restore(jax.eval_shape(lambda: state(0)))[1] == {"host": {"rate_factor": 7}}
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4, 6, 7]


def test_a_checkpoint_of_another_state_is_named(tmp_path: Path):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state(1), {"host": {}}, None)
        more = DiscriminatorState({"output": jnp.ones(3)}, {}, {})
        for target in (state(0, size=30_001), replace(state(0), discriminators=more)):
            with pytest.raises(CheckpointError, match="checkpoints"):
                checkpoints.restore(jax.eval_shape(lambda target=target: target))
