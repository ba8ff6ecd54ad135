"""Recordings that cannot be read are reported by name, and stop no other recording."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import soundfile
from support.archives import tar
from support.corpora import rows, tokenize, tokenize_error
from support.training import voiced

from focalcodec_jax.errors import FocalCodecError


def cut(content: bytes) -> bytes:
    return content[: len(content) * 6 // 10]


def bad_files(folder: Path, here: Path, monkeypatch) -> dict[str, str]:
    """Write files that cannot be read. Returns a part of the expected reason for each id."""
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
        monkeypatch.chdir(here)  # names of sockets have a short maximum length
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
    """Write a manifest of invalid entries. Returns its path, and a part of the expected reason for each id."""
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
        "good": "two recordings have the id", "missing": "does not exist", "outside": "has no part from 5 s to 6",
        "no duration": "come together", "odd samples": "are integers", "no url": "does not exist",
        "not a tar": "record 3", "command": "would come from command", where[0]: "no path",
        where[1]: "not the path of a file", where[2]: "not one JSON object", where[3]: "not one JSON object",
    }  # fmt: skip


def test_bad_input_is_reported_by_name_and_stops_nothing(folder: Path, tmp_path: Path, monkeypatch):
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
    printed = tokenize(*inputs, "-o", tmp_path / "out", code=1)
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    reasons = {failure["id"]: failure["reason"] for failure in failures}
    assert reasons.keys() == expected.keys()
    assert len(failures) == len(expected) >= 30
    for name, reason in expected.items():
        assert reason in reasons[name], name
    assert [row["id"] for row in rows(tmp_path / "out")] == ["good", *(f"u{n:02d}" for n in range(12))]
    assert f"{len(failures)} recording(s) could not be read" in " ".join(printed.split())
    strict = tokenize_error(*inputs, "-o", tmp_path / "strict", "--strict")
    assert isinstance(strict, FocalCodecError)
    assert "stopped because `strict` is set" in str(strict)
    assert not (tmp_path / "strict/dataset_info.json").exists()
