"""Find recordings in every kind of input, local and behind URLs, and report problems that a listing shows."""

import errno
import gzip
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from support.archives import tar
from support.training import recordings
from typer.testing import CliRunner

from focalcodec_jax.cli import app
from focalcodec_jax.errors import AudioError
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.recording import Recording, num_samples, read
from focalcodec_jax.recordings.sources import SAMPLE_INPUT, list_recordings


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return recordings(tmp_path_factory.mktemp("sources") / "speech", 4)


def sig(folder: Path, number: int) -> np.ndarray:
    return audio.read(folder / f"utterance-{number:02d}.flac")


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_folders_files_globs_and_the_sample(folder: Path):
    found = list_recordings([folder])
    assert [r.id for r in found] == [f"utterance-{n:02d}" for n in range(4)]
    assert [r.size for r in found] == [(folder / f"{r.id}.flac").stat().st_size for r in found]
    assert [r.path for r in list_recordings([f"{folder}/*-0[12].flac"])] == [r.path for r in found[1:3]]
    assert [r.id for r in list_recordings([f"{folder.parent}/spe*"])] == [r.id for r in found]
    assert list_recordings([folder / "utterance-01.flac"])[0].path == found[1].path
    assert [r.id for r in list_recordings([SAMPLE_INPUT])] == ["librivox_sense_and_sensibility"]
    np.testing.assert_array_equal(read(found[2]), sig(folder, 2))


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_urls(folder: Path, kind: str, tmp_path: Path):
    base = f"{kind}://{tmp_path}/there"
    files = fsspec.filesystem(kind)
    for path in folder.iterdir():
        files.makedirs(f"{tmp_path}/there/voice", exist_ok=True)
        files.pipe_file(f"{tmp_path}/there/voice/{path.name}", path.read_bytes())
    files.pipe_file(f"{tmp_path}/there/list.csv", f"path\nvoice/utterance-03.flac\n{base}/voice/no.flac\n".encode())
    found = list_recordings([base])
    assert [r.id for r in found] == [f"voice/utterance-{n:02d}" for n in range(4)]
    assert [r.id for r in list_recordings([f"{base}/voice/*01*"])] == [f"{base}/voice/utterance-01"]
    rows = list_recordings([f"{base}/list.csv"])
    for recording in (found[3], rows[0]):
        np.testing.assert_array_equal(read(recording), sig(folder, 3))
    with pytest.raises(AudioError, match=r"no.flac does not exist"):
        read(rows[1])


def test_manifests_keep_their_own_columns(folder: Path, tmp_path: Path):
    rows = [{"id": f"r{n}", "audio": f"{folder}/utterance-{n:02d}.flac", "speaker": n, "tags": ["a"]} for n in range(2)]
    manifest = lines(tmp_path / "list.jsonl", rows)
    (tmp_path / "list.jsonl.gz").write_bytes(gzip.compress(manifest.read_bytes()))
    for name in ("list.jsonl", "list.jsonl.gz"):
        assert [(r.id, r.columns) for r in list_recordings([tmp_path / name])] == [
            ("r0", {"speaker": 0, "tags": ["a"]}),
            ("r1", {"speaker": 1, "tags": ["a"]}),
        ]


def test_parts_of_a_recording(folder: Path, tmp_path: Path):
    rows = [{"id": "part", "audio_filepath": f"{folder}/utterance-03.flac", "offset": 0.1, "duration": 0.25}]
    (part,) = list_recordings([lines(tmp_path / "list.jsonl", rows)])
    np.testing.assert_array_equal(read(part), sig(folder, 3)[1600:5600])
    assert part.samples == 4000
    rows[0] |= {"duration": 60}
    with pytest.raises(AudioError, match=r"lasts 0.6 s, so it has no part from 0.1 s to 60.1"):
        read(list_recordings([lines(tmp_path / "list.jsonl", rows)])[0])


def test_parts_without_ids_and_odd_lengths(folder: Path, tmp_path: Path):
    """NeMo writes such manifests."""
    rows = [{"audio_filepath": f"{folder}/utterance-03.flac", "offset": n / 10, "duration": 0.1} for n in range(3)]
    rows += [{"id": 0, "path": "a.wav", "duration": math.nan}, {"path": "b.wav", "offset": 0, "duration": math.inf}]
    found = list_recordings([lines(tmp_path / "list.jsonl", rows)])
    assert len({r.id for r in found}) == 5
    assert found[3].id == "0"
    assert found[3].estimated_seconds == 10
    assert [r.problem is None for r in found] == [True] * 4 + [False]


def test_what_cannot_be_listed_is_named(folder: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "list.csv").write_text('path,text\na.wav,"never closed\nb.wav,two\n')
    with pytest.raises(AudioError, match=r"list\.csv cannot be read past entry 0: unexpected end of data"):
        list_recordings([tmp_path / "list.csv"])

    (tmp_path / "in/closed").mkdir(parents=True)
    shutil.copy(folder / "utterance-00.flac", tmp_path / "in")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = {r.id: r.problem for r in list_recordings([tmp_path / "in"])}
    assert found.pop("utterance-00") is None
    assert "closed cannot be listed: Permission denied" in str(found.popitem()[1])


def test_lhotse(folder: Path, tmp_path: Path):
    stereo = np.stack([sig(folder, 0), -sig(folder, 0)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 16_000, subtype="FLOAT")
    source = {"type": "file", "channels": [0, 1], "source": str(tmp_path / "stereo.wav")}
    recording = {
        "id": "rec", "sources": [source], "sampling_rate": 16_000, "num_samples": len(stereo), "duration": 0.3,
    }  # fmt: skip
    cut = {"id": "cut", "start": 0.1, "duration": 0.1, "channel": 1, "recording": recording, "type": "MonoCut"}
    supervision = {"id": "s", "recording_id": "rec", "start": 0, "duration": 0.1, "text": "yes", "speaker": "a"}
    rows = [
        recording,
        cut | {"supervisions": [supervision], "custom": {"snr": 3}},
        cut | {"id": "mixed", "type": "MixedCut"},
        recording | {"id": "command", "sources": [source | {"type": "command"}]},
        cut | {"id": "fourth", "channel": 3},
        {"id": "bare", "type": "MonoCut"},
    ]
    found = list_recordings([lines(tmp_path / "cuts.jsonl", rows)])
    np.testing.assert_allclose(read(found[0]), 0, atol=1e-7)
    np.testing.assert_array_equal(read(found[1]), stereo[1600:3200, 1].astype(np.float32))
    assert found[1].columns == {"snr": 3, "text": "yes", "speaker": "a"}
    problems = [str(r.problem) for r in found[2:]]
    for problem, text in zip(
        problems, ("MixedCut is not", "come from command", "no channel 3", "KeyError"), strict=True
    ):
        assert text in problem


def test_tars(folder: Path, tmp_path: Path):
    flac = [(folder / f"utterance-{n:02d}.flac").read_bytes() for n in range(2)]
    path = tar(
        tmp_path / "shard-0.tar",
        {"a/0.flac": flac[0], "a/0.json": b'{"speaker": 7}', "a/0.txt": b"yes", "1.en.flac": flac[1]},
    )
    first, second = list_recordings([tmp_path])
    assert (first.id, second.id) == (f"{tmp_path}/shard-0/a/0", f"{tmp_path}/shard-0/1.en")
    assert first.columns == {"speaker": 7, "text": "yes"}
    np.testing.assert_array_equal(read(second), sig(folder, 1))
    assert second.source == f"{path}/1.en.flac"

    beside = tar(
        tmp_path / "beside/odd.tar", {"0.flac": flac[0], "0.txt": b"caf\xe9", "1.flac": flac[1], "1.txt": b"1"}
    )
    found = list_recordings([beside])
    assert [(r.problem is None, dict(r.columns)) for r in found] == [(False, {}), (True, {"text": "1"})]
    assert "0.txt is not readable" in str(found[0].problem)

    content = path.read_bytes()
    path.write_bytes(content[: content.index(flac[1]) + 100])
    found = list_recordings([path])
    assert [r.problem is None for r in found] == [True, False]
    assert "not a whole tar" in str(found[1].problem)


def test_shards(folder: Path, tmp_path: Path):
    done = CliRunner().invoke(app, ["prepare", str(folder), "-o", str(tmp_path / "shards"), "--workers", "1"])
    assert done.exit_code == 0, done.output
    by_manifest = list_recordings([tmp_path / "shards"])
    by_file = list_recordings([f"{tmp_path}/shards/*.array_record"])
    assert [r.id for r in by_file] == [r.id for r in by_manifest] == [f"utterance-{n:02d}" for n in range(4)]
    for recording in (by_manifest[2], by_file[2]):
        np.testing.assert_array_equal(read(recording), sig(folder, 2))
    (tmp_path / "bad.array_record").write_bytes(b"no shard")
    (bad,) = list_recordings([tmp_path / "bad.array_record"])
    assert "not a whole ArrayRecord shard" in str(bad.problem)


def test_links_and_odd_names(folder: Path, tmp_path: Path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "linked").symlink_to(folder)
    (here / "again").symlink_to(here)  # a cycle of folders
    (here / "circle.wav").symlink_to(here / "circle.wav")
    (here / "nowhere.wav").symlink_to(here / "missing.wav")
    (here / "folder.wav").mkdir()
    os.link(folder / "utterance-00.flac", os.fsencode(here) + b"/caf\xe9.flac")
    os.link(folder / "utterance-00.flac", here / "two.flac")
    soundfile.write(here / "two.wav", sig(folder, 1), 16_000)
    found = {r.id: r for r in list_recordings([here])}
    assert found.keys() == {
        "circle", "nowhere", "folder", r"caf\xe9", "two.flac", "two.wav",
        *(f"linked/utterance-{n:02d}" for n in range(4)),
    }  # fmt: skip
    np.testing.assert_array_equal(read(found[r"caf\xe9"]), sig(folder, 0))
    for name, reason in (("circle", "symbolic links"), ("nowhere", "does not exist"), ("folder", "is a folder")):
        with pytest.raises(AudioError, match=reason):
            read(found[name])
        assert num_samples(found[name]) == 0


def test_what_is_given_twice_is_named(folder: Path):
    found = list_recordings([folder, folder / "utterance-00.flac", folder])
    assert [r.problem is None for r in found] == [True] * 5 + [False] * 4
    assert "two recordings have the id 'utterance-00'" in str(found[5].problem)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "does not exist"),
        ("*.wav", "nothing matches"),
        (".", "contains no audio files"),
        ("notes.txt", "neither a folder, audio, a manifest"),
        ("what://bucket/a", "what"),
    ],
)
def test_inputs_that_are_none(path: str, message: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=message):
        list_recordings([path])


def test_a_part_is_read_at_any_rate(tmp_path: Path):
    """A window that is read by itself has the samples that it has in the whole recording."""
    time = np.arange(12 * 22_050) / 22_050
    soundfile.write(tmp_path / "long.wav", 0.5 * np.sin(2 * np.pi * (300 + 20 * time) * time), 22_050, subtype="FLOAT")
    recording = Recording("long", str(tmp_path / "long.wav"))
    whole = read(recording)
    part = read(recording, 4, 3)
    assert len(part) == 48_000
    np.testing.assert_allclose(part[800:-800], whole[64_800:111_200], atol=1e-5)
