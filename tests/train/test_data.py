"""Corpora, shards and batches: each recording once, independence of the division of work, and named errors."""

import json
import os
import resource
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from support.training import recordings, tiny, voiced
from typer.testing import CliRunner

from focalcodec_jax.cli import app
from focalcodec_jax.errors import AudioError
from focalcodec_jax.nn.lengths import bucket_length
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.recording import read
from focalcodec_jax.recordings.sources import find
from focalcodec_jax.train import PrepareOptions, PrepareProgress, RunMessage, prepare, sharding
from focalcodec_jax.train.data import (
    NO_RECORDING,
    BatchPlan,
    BatchReader,
    Pipeline,
    PlannedBatch,
    corpus_buckets,
    select,
)
from focalcodec_jax.train.shards import AudioShard, plan_shards, write_shard

LENGTHS = np.random.default_rng(0).gamma(4.0, 16_000, 203).astype(int) + 2000


def plan(seed: int | None = 0) -> BatchPlan:
    return BatchPlan(LENGTHS, tiny(data={"bucket_growth": 1.25}).data, seed=seed, align=320)


def test_an_epoch_takes_each_recording_once_in_a_long_enough_bucket():
    chosen = plan()
    for epoch in (0, 1, 5):
        batches = [chosen[epoch * chosen.batches_per_epoch + n] for n in range(chosen.batches_per_epoch)]
        taken = Counter(index for batch in batches for index in batch.indices)
        assert taken.pop(NO_RECORDING) == -len(LENGTHS) % 8
        assert taken == dict.fromkeys(range(len(LENGTHS)), 1)
        for batch in batches:
            assert batch.samples % 320 == 0
            assert all(LENGTHS[index] <= batch.samples for index in batch.indices if index != NO_RECORDING)
    assert sum(LENGTHS) < sum(8 * batch.samples for batch in batches) < sum(LENGTHS) / 0.75
    assert len({batch.samples for batch in batches}) <= len(chosen.buckets) <= 20


def test_training_has_the_buckets_of_inference_up_to_its_longest_recording():
    buckets = corpus_buckets(LENGTHS, 1.25, 320).tolist()
    assert buckets[:-1] == sorted({bucket_length(int(n), 320) for n in range(1, buckets[-2] + 1, 320)})
    assert buckets[-1] == -(-LENGTHS.max() // 320) * 320 <= bucket_length(int(LENGTHS.max()), 320)


def test_epochs_and_seeds_shuffle_differently_and_validation_does_not():
    def order(chosen: BatchPlan, epoch: int) -> list[int]:
        return [
            i for n in range(chosen.batches_per_epoch) for i in chosen[epoch * chosen.batches_per_epoch + n].indices
        ]

    assert order(plan(), 0) == order(plan(), 0)
    assert order(plan(), 0) != order(plan(), 1)
    assert order(plan(), 0) != order(plan(seed=1), 0)
    assert order(plan(seed=None), 0) == order(plan(seed=None), 3)


def test_crops_fill_their_last_batch():
    chosen = BatchPlan(LENGTHS[:3], tiny("end-to-end", data={"crop_seconds": 0.5}).data, seed=0, align=320)
    assert chosen.batches_per_epoch == 1
    assert Counter(chosen[4].indices).keys() == {0, 1, 2}
    assert chosen[4].samples == 8000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return recordings(tmp_path_factory.mktemp("data") / "speech")


def test_rows_are_the_same_however_they_are_divided(folder: Path):
    """A crop depends on its row in the global batch, and not on the process that reads it."""
    config = tiny("end-to-end").data
    found = find([folder])
    chosen = BatchPlan(np.array([r.samples for r in found]), config, seed=3, align=320)
    whole, _ = BatchReader(found, tuple(range(8)), True, 3)(chosen[5])
    halves = [BatchReader(found, rows, True, 3)(chosen[5])[0] for rows in ((0, 1, 2, 3), (4, 5, 6, 7))]
    for name in ("sig", "lengths", "crop", "bad"):
        np.testing.assert_array_equal(np.concatenate([getattr(half, name) for half in halves]), getattr(whole, name))
    assert len({row.tobytes() for row in whole.sig}) == 8


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_speed_changes_pitch_and_pace_and_not_the_length(speed: float, tmp_path: Path):
    time = np.arange(32_000) / 16_000
    soundfile.write(tmp_path / "rising.wav", 0.3 * np.sin(2 * np.pi * (400 + 50 * time) * time), 16_000)
    found = find([tmp_path])
    batch, _ = BatchReader(found, (0,), True, 0, (speed, speed))(PlannedBatch(0, 16_000, (0,)))
    assert batch.lengths == 16_000
    half_way = batch.crop * (32_000 - 16_000 * speed) / 16_000 + speed / 2  # seconds in the recording
    pitch = np.abs(np.fft.rfft(batch.sig[0, 7000:9000] * np.hanning(2000), 32_000)).argmax() / 2
    assert pitch == pytest.approx(speed * (400 + 100 * half_way), abs=2)


def test_speeds_differ_between_crops_and_are_within_the_range(folder: Path):
    found = find([folder])
    lengths = [r.samples for r in found]
    planned = PlannedBatch(4, 16_000, tuple(range(len(found))))  # longer than all recordings, so nothing is cropped
    batch, _ = BatchReader(found, tuple(range(len(found))), True, 0, (0.8, 1.25))(planned)
    speeds = np.array(lengths) / batch.lengths
    assert 0.79 < speeds.min() < 0.9
    assert 1.1 < speeds.max() < 1.26


def pipeline(source: Path, **data) -> Pipeline:
    config = tiny(data={"train": [str(source)], **data}).data
    mesh = sharding.make_mesh(tiny().mesh, 8, jax.devices()[:1])
    return Pipeline(select([str(source)], config, "train")[0], config, sharding.batch_sharding(mesh), seed=0, align=320)


def test_batches_from_any_step_and_any_number_of_workers(folder: Path):
    expected = [np.asarray(batch.sig) for batch, _ in pipeline(folder).batches(0, 6, workers=0)]
    assert not all(np.array_equal(expected[0], later) for later in expected[1:])
    for start, workers in ((3, 0), (2, 1), (0, 2)):
        found = [np.asarray(batch.sig) for batch, _ in pipeline(folder).batches(start, 6, workers)]
        assert len(found) == 6 - start
        assert all(np.array_equal(a, b) for a, b in zip(found, expected[start:], strict=True))


def test_unreadable_and_empty_recordings_are_empty_rows_with_a_reason(folder: Path, tmp_path: Path):
    for path in folder.iterdir():
        os.link(path, tmp_path / path.name)
    (tmp_path / "broken.wav").write_bytes(b"RIFF no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan, np.float32), 16_000, subtype="FLOAT")
    content = (folder / "utterance-05.flac").read_bytes()
    (tmp_path / "truncated.flac").write_bytes(content[: len(content) // 2])
    reasons, bad, real = {}, 0, 0
    for batch, failed in pipeline(tmp_path).batches(0, 2, workers=0):
        reasons |= dict(failed)
        bad += int(batch.bad.sum())
        real += int((batch.lengths > 0).sum())
        assert not np.asarray(batch.sig)[np.asarray(batch.lengths) == 0].any()
    assert reasons.keys() == {"broken", "empty", "nan", "truncated"}
    assert "not audio" in reasons["broken"]
    assert "empty" in reasons["empty"]
    assert "NaN" in reasons["nan"]
    assert (bad, real) == (4, 10)


# --- prepare ---------------------------------------------------------------------------------------------------


def shards(inputs: list[Path], output: Path, **changes) -> list[AudioShard]:
    return plan_shards(inputs, output, PrepareOptions(**{"per_shard": 4, **changes}))


def test_prepare_keeps_every_sample(folder: Path, tmp_path: Path):
    result = CliRunner().invoke(
        app, ["prepare", str(folder), "-o", str(tmp_path), "--per-shard", "4", "--workers", "2"]
    )
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("*.array_record"))) == 3
    packed, plain = find([tmp_path]), find([folder])
    assert [(r.id, r.samples) for r in packed] == [(r.id, r.samples) for r in plain]
    for index in range(len(plain)):
        np.testing.assert_array_equal(read(packed[index]), read(plain[index]))


def test_prepare_resumes_after_an_interruption(folder: Path, tmp_path: Path):
    options, events = PrepareOptions(per_shard=4, workers=1), []
    planned = shards([folder], tmp_path)
    write_shard(planned[1])
    written = planned[1].path.stat().st_mtime_ns
    (tmp_path / ".shard-00000.123.part.array_record").write_bytes(b"cut off")
    report = prepare([folder], tmp_path, options, progress=events.append)
    assert [event.recordings for event in events if isinstance(event, PrepareProgress)] == [0, 4, 8, 10]
    assert events[0] == RunMessage("listing the recordings", "phase")
    assert (report.output, report.shards, report.recordings, report.failed) == (tmp_path, 3, 10, 0)
    assert report.hours == pytest.approx(sum(r.seconds for r in find([folder])) / 3600)
    assert events[-1].hours == report.hours
    assert planned[1].path.stat().st_mtime_ns == written
    assert [r.id for r in find([tmp_path])] == [f"utterance-{n:02d}" for n in range(10)]
    planned[2].path.unlink()
    assert prepare([folder], tmp_path, options) == report
    assert planned[2].path.is_file()
    with pytest.raises(AudioError, match="shards of other recordings or options"):
        shards([folder], tmp_path, per_shard=5)


def test_prepare_on_a_full_disk_leaves_nothing_half_written(folder: Path, tmp_path: Path):
    (shard,) = shards([folder], tmp_path, per_shard=100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_shard(shard)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["prepare.json"]


def test_prepare_resamples_mixes_and_names_what_it_cannot_read(tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    stereo = np.stack([voiced(0.5, 0), voiced(0.5, 1)], axis=1)
    soundfile.write(source / "stereo.wav", stereo, 16_000, subtype="FLOAT")
    soundfile.write(source / "high.wav", audio.resample(voiced(0.5, 2), 16_000, 44_100), 44_100)
    (source / "broken.mp3").write_bytes(b"nothing")
    result = CliRunner().invoke(app, ["prepare", str(source), "-o", str(tmp_path / "out"), "--rate-hz", "16000"])
    assert result.exit_code == 1
    assert "1 recordings could not be read" in result.output
    assert "broken" in (tmp_path / "out" / "failures.jsonl").read_text()
    packed = find([tmp_path / "out"])
    assert {r.id: r.samples for r in packed} == {"high": 8000, "stereo": 8000}
    at = [r.id for r in packed].index("stereo")
    np.testing.assert_allclose(read(packed[at]), stereo.mean(axis=1), atol=1e-4)


def test_prepare_takes_listed_ids_and_manifests(folder: Path, tmp_path: Path):
    ids = tmp_path / "ids.txt"
    ids.write_text("# two of them\nutterance-07\nutterance-02\n")
    assert [r.id for s in shards([folder], tmp_path / "a", ids=ids) for r in s.recordings] == [
        "utterance-07",
        "utterance-02",
    ]
    manifest = tmp_path / "list.csv"
    relative = os.path.relpath(folder, tmp_path)
    manifest.write_text(f"\ufeffid,path,speaker\nfirst,{relative}/utterance-01.flac,x\n", encoding="utf-8")
    (found,) = find([manifest])
    assert (found.id, found.samples) == ("first", find([folder])[1].samples)
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": str(folder / "utterance-01.flac")}) + "\n")
    assert find([manifest])[0].samples == found.samples


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (b"utterance-99\n", r"1 ids of .*ids\.txt are not in the inputs, such as utterance-99"),
        (b"utterance-01\nutterance-01\n", "1 ids of .* are listed more than once, such as utterance-01"),
        (b"same\n", "1 ids of .* match several recordings of the inputs, such as same"),
        (b"# none\n", "lists no ids"),
        (b"\xff\xfe\x00", "is not a text file of ids"),
    ],
)
def test_wrong_lists_of_ids_are_named(listed: bytes, message: str, folder: Path, tmp_path: Path):
    for part in ("a", "b"):
        (tmp_path / "in" / part).mkdir(parents=True)
        os.link(folder / "utterance-01.flac", tmp_path / "in" / part / "same.flac")
    os.link(folder / "utterance-01.flac", tmp_path / "in" / "utterance-01.flac")
    (tmp_path / "ids.txt").write_bytes(listed)
    with pytest.raises(AudioError, match=message):
        shards([tmp_path / "in"], tmp_path / "out", ids=tmp_path / "ids.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"", "lists no recordings"),
        ("list.csv", b"speaker\n1\n", "no path, audio or audio_filepath among speaker"),
        ("list.csv", "path\nJos\u00e9.wav\n".encode("latin-1"), "is not text in UTF-8"),
        ("list.csv", b"path,samples,rate_hz\na.wav,abc,16000\n", "a: record, samples and rate_hz are integers"),
        ("list.jsonl", b'{"audio": {"path": "a.wav"}}\n', "entry 1: audio is .* not the path of a file"),
    ],
)
def test_wrong_manifests_are_named(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=message):
        find([tmp_path / name])


def test_missing_data_is_named(tmp_path: Path, folder: Path):
    (tmp_path / "lines.jsonl").write_text("not json\n")
    for inputs, message in (
        ([], r"data\.train is empty"),
        (["nowhere"], "nowhere does not exist"),
        ([str(tmp_path / "lines.jsonl")], "not one JSON object per line"),
        ([str(folder), str(folder)], "two recordings have the id"),
    ):
        with pytest.raises(AudioError, match=message):
            select(inputs, tiny().data, "train")
    (tmp_path / "elsewhere.csv").write_text("path\ngone.wav\n")
    with pytest.raises(AudioError, match=r"none of the 1 recordings of data\.train can be opened, such as .*gone\.wav"):
        select([str(tmp_path / "elsewhere.csv")], tiny().data, "train")
    with pytest.raises(AudioError, match=r"none of the 10 recordings of data\.train lasts 5 to 60 s"):
        select([str(folder)], tiny(data={"min_seconds": 5}).data, "train")
