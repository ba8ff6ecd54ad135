"""Tokenizing loses and repeats no recording, despite killed processes, shared work, a full disk and failures."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.corpora import rows, tokenize, tokenize_error
from support.training import free_port, recordings

from focalcodec_jax import cli

COMMAND = [sys.executable, "-m", "focalcodec_jax.cli", "tokenize"]


def test_killed_at_any_moment(tmp_path: Path):
    """Two processes share the work, and one of them is killed several times. Each recording is in the result once."""
    inputs = recordings(tmp_path / "many", 250, (0.3, 0.5))
    arguments = [inputs, "--shard-hours", "0.001", "--batch-seconds", "0.5"]
    tokenize(*arguments, "-o", tmp_path / "whole")
    out = tmp_path / "out"
    command = [*COMMAND, *arguments, "-o", out, "-c", os.environ["CHECKPOINT"], "--workers", "1", "--check", "0"]

    def there() -> int:
        return len(list(out.glob("data/tokens*")))

    for more in (0, 2, 3):
        before = there()
        running = subprocess.Popen([*map(str, command), "--shard", "0/2"], stderr=subprocess.DEVNULL)
        while running.poll() is None and there() < before + more:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert 5 <= there() < len(list((tmp_path / "whole/data").iterdir())) // 2
    for part in ("1/2", "0/2"):
        tokenize(*arguments, "-o", out, "--shard", part)
    assert rows(out) == rows(tmp_path / "whole")
    assert not list(out.rglob("*.part*"))
    assert "devices" not in tokenize(*arguments, "-o", out)  # nothing was computed again


def test_processes_that_find_each_other(folder: Path, tmp_path: Path):
    port = free_port()
    command = [
        *COMMAND, folder, "-o", tmp_path / "out", "-c", os.environ["CHECKPOINT"], "--workers", "0", "--check", "0",
        "--shard-hours", "0.001", "--coordinator", f"localhost:{port}", "--num-processes", "2",
    ]  # fmt: skip
    both = [subprocess.Popen([*command, "--process-id", str(n)], stderr=subprocess.PIPE, text=True) for n in range(2)]
    printed = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert [row["id"] for row in rows(tmp_path / "out")] == [f"u{n:02d}" for n in range(12)]
    assert (tmp_path / "out/dataset_info.json").exists()


def test_a_full_disk_is_named_and_the_same_command_goes_on(folder: Path, tmp_path: Path, monkeypatch, capsys):
    command = ["tokenize", folder, "-o", tmp_path / "out", "-c", os.environ["CHECKPOINT"], "--workers", "0"]
    monkeypatch.setattr(sys, "argv", list(map(str, ["focalcodec-jax", *command, "--check", "0"])))
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stop.value.code == 2
    assert os.strerror(errno.EFBIG) in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.part*"))
    tokenize(folder, "-o", tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 12


def test_a_folder_of_something_else_is_refused(folder: Path, tmp_path: Path):
    tokenize(folder, "-o", tmp_path / "out")
    assert "was started with other recordings" in str(tokenize_error(folder / "u01.flac", "-o", tmp_path / "out"))
    for option, value, before in (("format", "jsonl", "parquet"), ("dtype", "bfloat16", "float32")):
        wrong = str(tokenize_error(folder, "-o", tmp_path / "out", f"--{option}", value))
        assert f"was started with other options ({option}: {before}, not {value})" in wrong
    assert "contains other files, such as u00.wav" in str(tokenize_error(folder, "-o", folder))
    assert "the first of four processes is 0/4" in str(tokenize_error(folder, "-o", tmp_path / "new", "--shard", "4/4"))
    assert "nothing is left" in str(tokenize_error(folder, "-o", tmp_path / "new", "--window", "4"))


def test_failed_recordings_are_tried_again_when_asked(folder: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    for path in folder.iterdir():
        os.link(path, tmp_path / "in" / path.name)
    content = (folder / "u01.flac").read_bytes()
    (tmp_path / "in/u01.flac").unlink()
    (tmp_path / "in/u01.flac").write_bytes(b"no audio")
    arguments = (tmp_path / "in", "-o", tmp_path / "out", "--shard-hours", "0.001")
    tokenize(*arguments, code=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/data").iterdir()}
    (tmp_path / "in/u01.flac").write_bytes(content)
    tokenize(*arguments, code=1)
    tokenize(*arguments, "--retry-failed")
    assert len(rows(tmp_path / "out")) == 12
    assert (tmp_path / "out/failures.jsonl").read_text() == ""
    assert sum(path.stat().st_mtime_ns != time for path, time in before.items()) == 1


def test_trying_again_loses_nothing_that_was_read(folder: Path, tmp_path: Path):
    """The recordings are temporarily unavailable."""
    (tmp_path / "in").mkdir()
    for name in ("u01.flac", "u07.flac"):
        os.link(folder / name, tmp_path / "in" / name)
    (tmp_path / "in/bad.wav").write_bytes(b"no audio")
    arguments = (tmp_path / "list.jsonl", "-o", tmp_path / "out")
    names = [{"path": str(path)} for path in sorted((tmp_path / "in").iterdir())]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in names))
    tokenize(*arguments, code=1)
    kept = rows(tmp_path / "out")
    assert len(kept) == 2
    (tmp_path / "in").rename(tmp_path / "away")
    assert "stays as it was" in tokenize(*arguments, "--retry-failed", code=1)
    assert rows(tmp_path / "out") == kept
    assert json.loads((tmp_path / "out/dataset_info.json").read_text())["failures"] == 1
