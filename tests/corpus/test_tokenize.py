"""`focalcodec-jax tokenize`: the tokens of `Codec.encode`, each recording once, whatever is killed or unreadable."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from array_record.python.array_record_module import ArrayRecordReader
from support.archives import tar
from support.training import checkpoint, free_port, recordings, voiced
from typer.testing import CliRunner

from focalcodec_jax import Codec
from focalcodec_jax.cli import app
from focalcodec_jax.corpus import journal
from focalcodec_jax.corpus.engine import PATIENCE, Engine
from focalcodec_jax.errors import FocalCodecError
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.readers import Job, Readers
from focalcodec_jax.recordings.recording import Recording, unpack
from focalcodec_jax.recordings.windows import Windows, windows
from focalcodec_jax.tokens.formats import Format, path_of

COMMAND = [sys.executable, "-m", "focalcodec_jax.cli", "tokenize"]


@pytest.fixture(scope="module", autouse=True)
def codec(tmp_path_factory) -> Iterator[Codec]:
    """A small codec, by its folder in CHECKPOINT."""
    folder = checkpoint(tmp_path_factory.mktemp("codec"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHECKPOINT", folder)
        yield Codec.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve recordings of several formats, rates, channels and lengths."""
    folder = tmp_path_factory.mktemp("tokenize") / "speech"
    folder.mkdir()
    kinds = [("wav", 16_000), ("flac", 22_050), ("ogg", 44_100), ("mp3", 16_000), ("aiff", 8000), ("opus", 48_000)]
    for number, seconds in enumerate((0.02, 0.4, 0.05, 0.3, 0.25, 0.35, 0.9, 0.33, 0.28, 1.1, 0.31, 0.39)):
        suffix, rate_hz = kinds[number % 6]
        sig = audio.resample(voiced(seconds, number), 16_000, rate_hz)
        sig = np.stack([sig, 0.5 * sig], axis=1) if number % 4 == 1 else sig
        kind = "OGG" if suffix == "opus" else None
        subtype = "OPUS" if suffix == "opus" else None
        soundfile.write(folder / f"u{number:02d}.{suffix}", sig, rate_hz, format=kind, subtype=subtype)
    return folder


def tokenize(*arguments: object, code: int = 0) -> str:
    """What the command printed, run in this process."""
    fixed = ["-c", os.environ["CHECKPOINT"], "--workers", "0", "--check", "0"]
    done = CliRunner().invoke(app, ["tokenize", *map(str, arguments), *fixed])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output


def rows(output: Path) -> list[dict]:
    """The data set, in order."""
    tables = [pq.read_table(path) for path in sorted((output / "data").glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def encoded(codec: Codec, path: str) -> np.ndarray:
    return codec.encode(audio.read(path), 16_000)[0]


def test_tokens_are_those_of_encode(codec: Codec, folder: Path, tmp_path: Path):
    """Through worker processes, in batches, several shards, and once more one by one at the end."""
    command = [
        *COMMAND,
        folder,
        "-o",
        tmp_path / "out",
        "-c",
        os.environ["CHECKPOINT"],
        "--workers",
        "2",
        "--shard-hours",
        "0.001",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "out")
    assert [row["id"] for row in found] == [f"u{n:02d}" for n in range(12)]
    for row in found:
        np.testing.assert_array_equal(row["tokens"], encoded(codec, row["source"]))
        assert row["duration"] == len(audio.read(row["source"])) / 16_000
    assert pq.read_schema(tmp_path / "out/data/tokens-00000.parquet").field("tokens").type.value_type == "uint16"
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())
    tokens = np.concatenate([row["tokens"] for row in found])
    shares = np.bincount(tokens) / len(tokens)
    entropy = -sum(share * np.log2(share) for share in shares if share)
    assert info["token_entropy_bits"] == pytest.approx(entropy, abs=1e-3)
    assert (info["recordings"], info["failures"], info["tokens"]) == (12, 0, len(tokens))
    assert info["codes_used"] == len(set(tokens))
    assert info["shards"] == len(list((tmp_path / "out/data").iterdir())) > 1
    assert "miss rate 0.00 %" in done.stderr
    assert "12 recordings" in done.stderr


@pytest.mark.parametrize("format", list(Format))
def test_formats_hold_the_same(codec: Codec, folder: Path, tmp_path: Path, format: Format):
    listing = tmp_path / "list.jsonl"
    entries = [
        {"id": f"a/{n}", "path": f"{folder}/u0{n}.{s}", "speaker": n, "duration": "?"}
        for n, s in ((1, "flac"), (3, "mp3"))
    ]
    listing.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    tokenize(listing, "-o", tmp_path / "out", "--format", format.value)
    name = f"{tmp_path}/out/data/tokens-00000"
    if format is Format.parquet:
        found = rows(tmp_path / "out")
    elif format is Format.array_record:
        reader = ArrayRecordReader(f"{name}.array_record")
        pairs = [unpack(record) for record in reader.read_all()]
        found = [header | {"tokens": np.frombuffer(body, header.pop("dtype"))} for header, body in pairs]
    else:
        found = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
        for row in found:
            if format is Format.npy:
                row["tokens"] = np.load(tmp_path / "out" / row.pop("file"))
    for row, entry in zip(found, entries, strict=True):
        np.testing.assert_array_equal(row.pop("tokens"), encoded(codec, entry["path"]))
        seconds = len(audio.read(entry["path"])) / 16_000
        expected = {"id": entry["id"], "source": entry["path"], "speaker": entry["speaker"]}
        assert row == expected | {"duration": seconds, "manifest_duration": "?"}
    assert json.loads((tmp_path / "out/dataset_info.json").read_text())["format"] == format.value
    assert "tokens of" in (tmp_path / "out/README.md").read_text()


def test_columns_of_any_kind_fit_one_schema(folder: Path, tmp_path: Path):
    values = ["text", 3, {"a": [1]}, None, "\ud800", 2**70]
    more = {
        "bool": [True, 1],
        "big": [2**63, 1.5],
        "empty": [{}, {}],
        "deep": [{"x": 1}, {"x": "s"}],
        "list": [[1], []],
    }
    entries = [{"id": str(n), "path": f"{folder}/u01.flac", "odd": v, "int": n} for n, v in enumerate(values)]
    for entry in entries:
        entry |= {name: column[entry["int"] % 2] for name, column in more.items()}
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    tokenize(tmp_path / "list.jsonl", "-o", tmp_path / "out", "--shard-hours", "0.001")
    assert [row["odd"] for row in rows(tmp_path / "out")] == ["text", "3", '{"a": [1]}', None, r"\ud800", str(2**70)]
    assert [row["int"] for row in rows(tmp_path / "out")] == list(range(6))
    first, second, *_ = rows(tmp_path / "out")
    assert (first["bool"], second["bool"], first["list"], first["empty"]) == ("true", "1", [1], "{}")
    assert (first["big"], second["big"], second["deep"]) == (str(2**63), "1.5", '{"x": "s"}')


# --- nothing lost, nothing twice ---------------------------------------------------------------------------------


def test_killed_at_any_moment(tmp_path: Path):
    """Two processes share the work, one of them is killed −9 again and again; the union is the input, once each."""
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
        done = subprocess.run([*command, "--shard", part], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert rows(out) == rows(tmp_path / "whole")
    assert not list(out.rglob("*.part*"))
    again = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "devices" not in again  # nothing was computed once more


def test_processes_that_find_each_other(folder: Path, tmp_path: Path):
    port = free_port()
    command = [
        *COMMAND, folder, "-o", tmp_path / "out", "-c", os.environ["CHECKPOINT"], "--workers", "0", "--check", "0",
        "--shard-hours", "0.001", "--coordinator", f"localhost:{port}", "--num-processes", "2",
    ]  # fmt: skip
    both = [subprocess.Popen([*command, "--process-id", str(n)], stderr=subprocess.PIPE, text=True) for n in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [row["id"] for row in rows(tmp_path / "out")] == [f"u{n:02d}" for n in range(12)]
    assert (tmp_path / "out/dataset_info.json").exists()


def test_a_full_disk_is_named_and_the_same_command_goes_on(folder: Path, tmp_path: Path):
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    command = [
        *COMMAND,
        folder,
        "-o",
        tmp_path / "out",
        "-c",
        os.environ["CHECKPOINT"],
        "--workers",
        "0",
        "--check",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=small_files)
    assert done.returncode == 2, done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert not list((tmp_path / "out").rglob("*.part*"))
    tokenize(folder, "-o", tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 12


def test_a_folder_of_something_else_is_refused(folder: Path, tmp_path: Path):
    tokenize(folder, "-o", tmp_path / "out")
    assert "was begun with other recordings" in str(error(folder / "u01.flac", "-o", tmp_path / "out"))
    assert "other format parquet, not jsonl" in str(error(folder, "-o", tmp_path / "out", "--format", "jsonl"))
    assert "dtype float32, not bfloat16" in str(error(folder, "-o", tmp_path / "out", "--dtype", "bfloat16"))
    assert "holds other files, such as u00.wav" in str(error(folder, "-o", folder))
    assert "the first of four processes is 0/4" in str(error(folder, "-o", tmp_path / "new", "--shard", "4/4"))
    assert "nothing is left" in str(error(folder, "-o", tmp_path / "new", "--window", "4"))


def error(*arguments: object) -> BaseException | None:
    return (
        CliRunner()
        .invoke(app, ["tokenize", *map(str, arguments), "-c", os.environ["CHECKPOINT"], "--workers", "0"])
        .exception
    )


# --- bad input ---------------------------------------------------------------------------------------------------


def cut(content: bytes) -> bytes:
    return content[: len(content) * 6 // 10]


def bad_files(folder: Path, here: Path, monkeypatch) -> dict[str, str]:
    """Files that cannot be read, and what is said of each."""
    here.mkdir()
    sig = voiced(0.3, 0)
    whole = {name: here / f"whole.{name}" for name in ("wav", "flac", "mp3", "aiff", "caf", "w64", "rf64", "au")}
    for suffix, path in whole.items():
        soundfile.write(path, sig, 16_000, format=suffix.upper())
        (here / f"cut.{suffix}").write_bytes(cut(path.read_bytes()))
    wav, flac = whole["wav"].read_bytes(), whole["flac"].read_bytes()
    for path in whole.values():
        path.unlink()
    soundfile.write(here / "none.wav", np.zeros(0), 16_000)
    soundfile.write(here / "nan.wav", np.full(800, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(here / "infinite.wav", np.full(800, np.inf, np.float32), 16_000, subtype="FLOAT")
    (here / "zero.wav").touch()
    (here / "zero_hz.wav").write_bytes(wav[:24] + bytes(4) + wav[28:])
    (here / "no_channels.wav").write_bytes(wav[:22] + bytes(2) + wav[24:])
    (here / "text.wav").write_text("This is not audio.")
    (here / "picture.flac").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (here / "piped.flac").write_bytes(flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:])
    (here / "holes.flac").write_bytes(flac[:200] + bytes(len(flac) - 200))
    (here / "folder.wav").mkdir()
    (here / "circle.wav").symlink_to(here / "circle.wav")
    (here / "nowhere.wav").symlink_to(here / "missing.wav")
    os.mkfifo(here / "pipe.wav")
    (here / "phone.m4a").write_bytes(bytes(4) + b"ftypM4A " + bytes(100))
    (here / "raw.pcm.wav").write_bytes(bytes(1000))
    with open(os.fsencode(here) + b"/caf\xe9.wav", "wb") as file:
        file.write(b"no audio")
    (here / "two\nlines.wav").write_text("no audio")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(here)  # the name of a socket is to be short
        listener.bind("socket.wav")
    return {
        **dict.fromkeys(("cut.wav", "cut.aiff", "cut.w64", "cut.rf64", "cut.au", "cut.mp3"), "is cut short"),
        "cut.flac": "cannot be decoded to its end", "holes": "cannot be decoded", "cut.caf": "malformed",
        "none": "is empty", "nan": "NaN", "infinite": "infinite", "zero": "not audio", "zero_hz": "not audio",
        "no_channels": "not audio", "text": "not audio", "picture": "not audio", "piped": "how long",
        "folder": "is a folder", "circle": "symbolic links", "nowhere": "does not exist", "pipe": "is a pipe",
        "raw.pcm": "not audio", "phone": "not audio",
        r"caf\xe9": "not audio", "two\nlines": "not audio", "socket": "cannot be read",
    }  # fmt: skip


def bad_entries(folder: Path, here: Path) -> tuple[Path, dict[str, str]]:
    """A manifest of entries that cannot be read, and what is said of each."""
    good = f"{folder}/u01.flac"
    entries: list = [
        {"id": "good", "path": good},
        {"id": "good", "path": f"{folder}/u03.mp3"},
        {"id": "missing", "path": "missing.wav"},
        {"id": "outside", "path": good, "offset": 5, "duration": 1},
        {"id": "no duration", "path": good, "offset": 5},
        {"id": "odd samples", "path": good, "samples": "many", "rate_hz": 16_000},
        {"id": "no url", "path": "memory://nowhere.wav"},
        {"id": "not a tar", "path": "other.tar", "record": 3},
        {"id": "command", "sources": [{"type": "command", "channels": [0], "source": "x"}], "duration": 1},
        {"speaker": "no path"},
        {"path": {"not": "text"}},
        ["a list"],
    ]
    path = here / "list.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "no json\n")
    where = [f"{path}, entry {number}" for number in range(10, 14)]
    return path, {
        "good": "two recordings have the id", "missing": "does not exist", "outside": "there is no 5 s to 6",
        "no duration": "come together", "odd samples": "are integers", "no url": "does not exist",
        "not a tar": "record 3", "command": "come from command", where[0]: "no path",
        where[1]: "not the path of a file", where[2]: "not one JSON object", where[3]: "not one JSON object",
    }  # fmt: skip


def test_bad_input_is_reported_by_name_and_stops_nothing(codec: Codec, folder: Path, tmp_path: Path, monkeypatch):
    expected = bad_files(folder, tmp_path / "bad", monkeypatch)
    monkeypatch.chdir(tmp_path)
    manifest, entries = bad_entries(folder, tmp_path)
    expected |= entries
    broken = tar(tmp_path / "cut.tar", {"a.flac": (folder / "u01.flac").read_bytes()})
    broken.write_bytes(broken.read_bytes()[:700])
    empty = tar(tmp_path / "empty.tar", {})
    (tmp_path / "no.array_record").write_bytes(bytes(100))
    expected |= {
        str(broken): "not a whole tar",
        str(empty): "no file in it",
        "no.array_record": "not a whole ArrayRecord",
    }
    inputs = (tmp_path / "bad", manifest, broken, empty, "no.array_record", folder)
    said = tokenize(*inputs, "-o", tmp_path / "out", code=1)
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    reasons = {failure["id"]: failure["reason"] for failure in failures}
    assert reasons.keys() == expected.keys()
    assert len(failures) == len(expected) >= 30
    for name, reason in expected.items():
        assert reason in reasons[name], name
    assert [row["id"] for row in rows(tmp_path / "out")] == ["good", *(f"u{n:02d}" for n in range(12))]
    assert f"{len(failures)} recording(s) could not be read" in " ".join(said.split())
    strict = error(*inputs, "-o", tmp_path / "strict", "--strict")
    assert isinstance(strict, FocalCodecError)
    assert "(stopped, for --strict)" in str(strict)
    assert not (tmp_path / "strict/dataset_info.json").exists()


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
    """As when the recordings cannot be reached."""
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


def test_names_of_any_id_fit_a_file_system():
    ids = ["a/b", "%", "", "..", "音" * 60, "音" * 200, "音" * 201, "é" * 150, "a" * 250, "a" * 251, "a:b", "a%3Ab"]
    names = [path_of(id_) for id_ in ids]
    assert len(set(names)) == len(ids)
    assert names[4] == ids[4]
    assert all(0 < len(part.encode()) <= 200 and part not in (".", "..") for name in names for part in name.split("/"))


def test_out_of_memory_while_compiling_is_named(codec: Codec, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of HBM")

    monkeypatch.setattr(Engine, "_compile", full)
    with pytest.raises(FocalCodecError, match="--batch-seconds"):
        list(Engine(codec, "sig_to_toks", codec.samples, 32_000).run([("a", np.zeros(2000, np.float32))]))


def test_a_reader_that_dies_loses_only_its_recording(folder: Path):
    """As a fault in an audio library would end it."""
    good = [Recording(f"u{n}", f"{folder}/u0{n}.flac") for n in (1, 7)]
    deadly = Deadly("deadly", "deadly.wav")
    jobs = [Job(index, recording) for index, recording in enumerate([good[0], deadly, good[1]])]
    pieces = sorted(Readers(1, Windows(60, 4)).pieces(jobs), key=lambda piece: piece.index)
    assert [piece.sig is not None for piece in pieces] == [True, False, True]
    assert "ended the process that read it" in str(pieces[1].problem)


def test_readers_that_die_leave_nobody_behind(folder: Path):
    """Of several, while others read windows of long recordings, and while nobody waits for them."""
    jobs = [Job(n, Recording(f"u{n}", f"{folder}/u01.flac", samples=60 * 16_000)) for n in range(40)]
    for n in (3, 20):
        jobs[n] = Job(n, Deadly("deadly", "deadly.wav", samples=60 * 16_000))
    found = Counter()
    for piece in Readers(3, Windows(2, 0)).pieces(jobs):
        assert (piece.sig is None) == (piece.index in (3, 20)), piece.problem
        found[piece.index] += 1
        time.sleep(0.01)
    assert found == {n: 1 if n in (3, 20) else piece_count(folder / "u01.flac") for n in range(40)}
    deadline = time.monotonic() + 30
    while multiprocessing.active_children():
        assert time.monotonic() < deadline, "worker processes stay"
        time.sleep(0.1)


def piece_count(path: Path) -> int:
    return Windows(2, 0).count(soundfile.info(path).duration)


class Deadly(Recording):
    """A recording that kills who reads it."""

    @property
    def source(self) -> str:
        if os.getpid() != MAIN:
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.path


MAIN = int(os.environ.setdefault("TEST_TOKENIZE_MAIN", str(os.getpid())))


# --- windows, buckets, dry run -----------------------------------------------------------------------------------


def test_long_recordings_are_joined_from_windows(codec: Codec, tmp_path: Path):
    """Each window's tokens are those that it alone has, and all of the recording has as many as the whole."""
    sig = voiced(31.3, 0)
    soundfile.write(tmp_path / "long.flac", sig, 16_000)
    tokenize(tmp_path / "long.flac", "-o", tmp_path / "out", "--window", "12", "--context", "2")
    (row,) = rows(tmp_path / "out")
    sig = audio.read(tmp_path / "long.flac")
    (whole,) = codec.encode(sig, 16_000)
    assert len(row["tokens"]) == len(whole)
    assert row["duration"] == len(sig) / 16_000
    (second,) = codec.encode(sig[8 * 16_000 : 20 * 16_000], 16_000)
    np.testing.assert_array_equal(row["tokens"][500:900], second[100:500])


@pytest.mark.parametrize("name", ["focalcodec_12_5hz", "focalcodec_50hz_4k_causal"])
def test_windows_begin_where_tokens_and_chunks_do(name: str):
    from focalcodec_jax.config import PRESETS

    config = PRESETS[name]
    found = windows(config, 59, 3)
    assert (found.seconds, found.context) == (60, 4)
    assert found.hop * config.token_rate_hz % 1 == 0


def test_rare_lengths_do_not_wait_for_ever(codec: Codec):
    """A bucket that does not fill up is sent after some batches of others."""
    engine = Engine(codec, "sig_to_toks", codec.samples, 16_000, batch_seconds=0.32)
    lengths = [9000] + [5000] * (PATIENCE + 20)
    order = [key for key, _ in engine.run((n, np.zeros(length, np.float32)) for n, length in enumerate(lengths))]
    assert sorted(order) == list(range(len(lengths)))
    assert engine.meter.batches == len(lengths)
    engine = Engine(codec, "sig_to_toks", codec.samples, 16_000, batch_seconds=1.3)
    rows_of_short, _ = engine.shape(5000)
    lengths = [9000] + [5000] * rows_of_short * (PATIENCE + 20)
    order = [key for key, _ in engine.run((n, np.zeros(length, np.float32)) for n, length in enumerate(lengths))]
    assert rows_of_short < order.index(0) < len(lengths) - rows_of_short


def test_dry_run_computes_nothing(folder: Path, tmp_path: Path):
    said = tokenize(folder, "-o", tmp_path / "out", "--dry-run")
    assert "12 recordings" in said
    assert "padding" in said
    assert not (tmp_path / "out").exists()


def test_shards_are_a_thousandth_of_the_corpus_within_limits():
    long = [Recording(str(n), "a", samples=16_000 * 3600) for n in range(3000)]
    assert len(journal.shards(long)) == 1000
    assert len(journal.shards(long[:4], 0.5)) == 4
    assert len(journal.shards([Recording(str(n), "a", samples=16_000) for n in range(1800)])) == 1
    pieces = journal.shards(long, 7)
    assert [pieces[0].first, *(piece.last for piece in pieces)] == [*(piece.first for piece in pieces), 3000]


# --- and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", list(Format))
def test_detokenize_gives_what_decode_gives(codec: Codec, folder: Path, tmp_path: Path, format: Format):
    tokenize(folder, "-o", tmp_path / "out", "--format", format.value, "--shard-hours", "0.001")
    detokenize(tmp_path / "out", "-o", tmp_path / "back", "--suffix", ".wav")
    for path in folder.iterdir():
        (toks,) = codec.encode(audio.read(path), 16_000)
        (expected,) = codec.decode(toks)
        found, rate_hz = soundfile.read(tmp_path / "back" / f"{path.stem}.wav")
        assert rate_hz == codec.sample_rate_hz
        np.testing.assert_allclose(found, np.clip(expected, -1, 1), atol=1e-4)
    assert (tmp_path / "back/failures.jsonl").read_text() == ""


def test_detokenize_goes_on_and_shares_the_work(folder: Path, tmp_path: Path):
    tokenize(folder, "-o", tmp_path / "out", "--shard-hours", "0.001")
    back = tmp_path / "back"
    assert "are left to other processes" in detokenize(tmp_path / "out", "-o", back, "--shard", "1/2")
    some = {path: path.stat().st_mtime_ns for path in back.glob("*.flac")}
    assert 0 < len(some) < 12
    detokenize(tmp_path / "out", "-o", back)
    assert len(list(back.glob("*.flac"))) == 12
    assert all(path.stat().st_mtime_ns == time for path, time in some.items())
    with pytest.raises(AssertionError, match="begun with another suffix"):
        detokenize(tmp_path / "out", "-o", back, "--suffix", ".ogg")


def test_long_token_sequences_are_joined_from_windows(codec: Codec, tmp_path: Path):
    soundfile.write(tmp_path / "long.flac", voiced(31.3, 0), 16_000)
    tokenize(tmp_path / "long.flac", "-o", tmp_path / "out")
    detokenize(tmp_path / "out", "-o", tmp_path / "back", "--window", "12", "--context", "2", "--suffix", ".wav")
    (row,) = rows(tmp_path / "out")
    (path,) = (tmp_path / "back").rglob("*.wav")
    found, _ = soundfile.read(path)
    (whole,) = codec.decode(np.array(row["tokens"]))
    assert len(found) == len(whole)
    (second,) = codec.decode(np.array(row["tokens"][400:1000]))
    np.testing.assert_allclose(found[160_000:288_000], np.clip(second, -1, 1)[32_000:160_000], atol=1e-4)


def detokenize(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["detokenize", *map(str, arguments), "-c", os.environ["CHECKPOINT"]])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output
