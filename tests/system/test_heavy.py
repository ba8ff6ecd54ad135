"""CI runs heavy tests when a file that they depend on has changed."""

import os
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = runpy.run_path(str(ROOT / ".ci/heavy.py"))


@pytest.mark.parametrize(
    ("changed", "checks"),
    [
        ([], []),
        (["README.md", "focalcodec_jax/corpus/engine.py"], []),
        (["focalcodec_jax/nn/focal.py"], ["large", "tpu"]),
        (["README.md", "train/step.py"], ["large", "tpu"]),
        (["convert/mapping.py"], ["large"]),
        (["tests/train/test_tpu.py"], ["tpu"]),
        (["pyproject.toml"], ["large", "tpu", "newest"]),
        (None, ["large", "tpu", "newest"]),
    ],
)
def test_checks_for_changed_files(changed: list[str] | None, checks: list[str]):
    assert HEAVY["needed"](changed) == checks


def test_named_files_exist():
    named = {path for paths in (*HEAVY["DEPENDS_ON"].values(), HEAVY["ALWAYS"]) for path in paths}
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_file_with_heavy_tests_is_named():
    """A change of a heavy test runs it."""
    for check in ("large", "tpu"):
        for path in (ROOT / "tests").rglob("test_*.py"):
            if f"pytest.mark.{check}\n" in path.read_text(encoding="utf-8"):
                assert check in HEAVY["needed"]([path.relative_to(ROOT).as_posix()]), path


def test_every_heavy_check_is_a_marker():
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert {name for name in HEAVY["DEPENDS_ON"] if name != "newest"} <= {line.split(":")[0] for line in markers}


def commit(repository: Path, name: str) -> None:
    identity = {f"GIT_{role}_{field}": "test@test" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).write_text(name)
    for arguments in (["add", "-A"], ["commit", "--quiet", "--message", name]):
        subprocess.run(["git", *arguments], cwd=repository, check=True, env=os.environ | identity)


def test_base_of_the_comparison(tmp_path: Path):
    changed = HEAVY["changed_files"]
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    commit(tmp_path, "README.md")
    commit(tmp_path, "train/step.py")
    commit(tmp_path, "train/loop.py")
    assert changed(tmp_path, "HEAD~1") == ["train/loop.py"]
    assert changed(tmp_path, None) is None, "without a remote and with a short history everything runs"
    assert changed(tmp_path, "unknown") is None
    subprocess.run(["git", "update-ref", "refs/remotes/origin/HEAD", "HEAD~2"], cwd=tmp_path, check=True)
    assert changed(tmp_path, None) == ["train/loop.py", "train/step.py"]
