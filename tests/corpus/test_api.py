"""`tokenize`, `detokenize` and `plan_summary` as Python functions: reports, progress events and options."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import SECONDS, rows, tokenize_error
from support.typecheck import checks_off

import focalcodec_jax
from focalcodec_jax import DetokenizeOptions, TokenizeOptions, detokenize, packed_sequences, tokenize
from focalcodec_jax.cli import corpus
from focalcodec_jax.corpus import progress as events
from focalcodec_jax.corpus.dryrun import plan_summary
from focalcodec_jax.errors import AudioError, ConfigError, FocalCodecError
from focalcodec_jax.files import Folder
from focalcodec_jax.tokens.dataset import TokenDataset
from focalcodec_jax.tokens.formats import FORMATS, jsonl
from focalcodec_jax.tokens.formats.base import TokenFormat


def test_reports_and_events(codec_folder: str, folder: Path, tmp_path: Path, capsys):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    seen: list[events.CorpusEvent] = []
    options = TokenizeOptions(checkpoint=codec_folder, workers=0, check=4)
    report = tokenize([folder, tmp_path / "bad.wav"], tmp_path / "out", options, progress=seen.append)
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())
    for name in ("recordings", "failures", "hours", "tokens", "shards", "codes_used", "token_entropy_bits"):
        assert getattr(report, name) == info[name]
    assert (report.recordings, report.failures, report.open_shards) == (12, 1, 0)
    assert report.processed_seconds == pytest.approx(sum(SECONDS), rel=0.1)
    assert report.check is not None
    assert (report.check.recordings, report.check.differing) == (4, 0)
    usage = report.usage
    assert usage is not None
    assert report.speed == report.processed_seconds / usage.elapsed_seconds
    shares = (usage.busy_share, usage.waiting_share, usage.compiling_share, usage.padding_share)
    assert all(0 <= share <= 1 for share in shares)
    assert usage.mfu is None

    kinds = [type(event) for event in seen]
    assert kinds[:4] == [
        events.ListingStarted, events.ListingFinished, events.CodecLoading, events.ProcessingStarted
    ]  # fmt: skip
    assert seen[1:3] == [events.ListingFinished(13), events.CodecLoading(codec_folder)]
    processed = [event for event in seen if isinstance(event, events.AudioProcessed)]
    assert len(processed) == 13
    assert sum(event.seconds for event in processed) == pytest.approx(report.processed_seconds)
    (failed,) = [event for event in seen if isinstance(event, events.RecordingFailed)]
    assert "bad.wav is not audio" in failed.message

    back = detokenize(tmp_path / "out", tmp_path / "back", DetokenizeOptions(workers=1), progress=seen.append)
    assert (back.blocks, back.open_blocks, back.failures) == (1, 0, 0)
    assert back.processed_seconds == pytest.approx(report.processed_seconds, rel=0.1)
    assert len(list((tmp_path / "back").glob("*.flac"))) == 12
    again = detokenize(tmp_path / "out", tmp_path / "back")
    assert (again.usage, again.processed_seconds, again.speed) == (None, 0, 0)
    assert capsys.readouterr() == ("", "")


def test_a_share_of_the_work(codec_folder: str, folder: Path, tmp_path: Path):
    options = {"checkpoint": codec_folder, "workers": 0, "shard_hours": 0.001, "check": 0}
    first = tokenize(str(folder), str(tmp_path), TokenizeOptions(**options, process=(0, 2)))
    assert 0 < first.recordings < 12
    assert first.open_shards == first.shards // 2
    assert not (tmp_path / "dataset_info.json").exists()
    last = tokenize(str(folder), str(tmp_path), TokenizeOptions(**options, process=(1, 2)))
    assert (last.recordings, last.open_shards, last.check) == (12, 0, None)
    nothing = tokenize(str(folder), str(tmp_path), TokenizeOptions(**options))
    assert nothing.usage is None
    assert nothing.tokens == last.tokens == sum(len(row["tokens"]) for row in rows(tmp_path))


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"process": (2, 2)}, None),
        ({"window": 0}, "window"),
        ({"workers": -1}, "workers"),
        ({"batch_seconds": 0.0}, "batch_seconds"),
        ({"shard_hours": float("nan")}, "shard_hours"),
        ({"format": "zarr"}, "format"),
        ({"window": 4}, "window"),
    ],
)
def test_options_are_checked(options: dict, parameter: str | None, folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        tokenize(folder, tmp_path, TokenizeOptions(**options))
    assert error.value.parameter == parameter


def test_strict_names_its_parameter(codec_folder: str, tmp_path: Path):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    options = TokenizeOptions(checkpoint=codec_folder, workers=0, strict=True)
    with pytest.raises(FocalCodecError, match=r"bad.wav is not audio .*`strict` is set"):
        tokenize(tmp_path / "bad.wav", tmp_path / "out", options)


def test_plan_summary(codec_folder: str, folder: Path):
    summary = plan_summary(folder, TokenizeOptions(checkpoint=codec_folder, shard_hours=0.001))
    assert (summary.recordings, summary.sampled, summary.unreadable) == (12, 12, 0)
    assert summary.hours * 3600 == pytest.approx(sum(SECONDS), rel=0.1)
    assert sum(batch.share for batch in summary.batches) == pytest.approx(1)
    assert summary.padding_share is not None
    assert 0 < summary.padding_share < 1


@pytest.mark.parametrize("command", [corpus.tokenize, corpus.detokenize])
def test_both_commands_share_their_options(command):
    shared = inspect.signature(corpus.shared_options).parameters
    assert inspect.signature(command).parameters.keys() >= shared.keys()
    assert "shared" not in inspect.signature(command).parameters


def test_public_names():
    for name in set(focalcodec_jax.__all__) - {"__version__"}:
        assert getattr(focalcodec_jax, name).__module__.startswith("focalcodec_jax.")


# --- a new format ------------------------------------------------------------------------------------------------


def write(folder: Folder, name: str, recordings, columns) -> None:
    with folder.written(name) as part:
        part.write_text("".join(f"{r.recording.id} {' '.join(map(str, r.tokens))}\n" for r in recordings))


def read_block(shard, block: int):
    with shard.open() as file:
        for line in file:
            id_, *toks = line.decode().split()
            yield jsonl.TokenSequence(id_, np.array(toks, int))


def test_a_new_format_is_one_record(codec_folder: str, folder: Path, tmp_path: Path, monkeypatch):
    """It is written, described, read, packed and decoded without a change elsewhere."""
    words = TokenFormat("words", "text", "txt", write, lambda shard: 1, read_block)
    monkeypatch.setitem(FORMATS, "words", words)
    options = {"checkpoint": codec_folder, "workers": 0, "check": 0}
    report = tokenize(folder, tmp_path / "words", TokenizeOptions(**options, format="words"))
    tokenize(folder, tmp_path / "parquet", TokenizeOptions(**options))
    assert [path.name for path in (tmp_path / "words/data").iterdir()] == ["tokens-00000.txt"]
    assert json.loads((tmp_path / "words/dataset_info.json").read_text())["format"] == "words"
    assert "packed_sequences" in (tmp_path / "words/README.md").read_text()
    (found,), (expected,) = TokenDataset(tmp_path / "words"), TokenDataset(tmp_path / "parquet")
    for (id_, toks), (expected_id, expected_toks) in zip(found, expected, strict=True):
        assert id_ == expected_id
        np.testing.assert_array_equal(toks, expected_toks)
    sequences = list(packed_sequences(tmp_path / "words", 16))
    assert sum(int((sequence["segment_ids"] > 0).sum()) for sequence in sequences) == report.tokens
    assert detokenize(tmp_path / "words", tmp_path / "back").open_blocks == 0


def test_the_command_has_all_formats(folder: Path, tmp_path: Path):
    problem = tokenize_error(folder, "-o", tmp_path / "out", "--format", "zarr")
    assert str(problem) == f"'zarr' is not a format of tokens; formats are {', '.join(FORMATS)}"


def test_a_script_without_a_main_guard_blames_no_recording(codec_folder: str, folder: Path, tmp_path: Path):
    """Each worker would import the script, and call the function again."""
    script = tmp_path / "script.py"
    options = f"TokenizeOptions(checkpoint={codec_folder!r}, workers=1)"
    call = f"tokenize({str(folder)!r}, {str(tmp_path / 'out')!r}, {options})"
    script.write_text(f"from focalcodec_jax import TokenizeOptions, tokenize\n{call}\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("because each worker imports the script")
    assert [path.name for path in (tmp_path / "out/journal").iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "zarr"}, "'zarr' is not a format of tokens"),
        ({"dtype": "float8"}, "dtype is float32 or bfloat16, not 'float8'"),
        ({"workers": -1}, "workers must be at least 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str):
    with checks_off(), pytest.raises(ConfigError, match=message):
        TokenizeOptions(**options)


def test_no_inputs(tmp_path: Path):
    with pytest.raises(AudioError, match="no inputs are given"):
        tokenize([], tmp_path / "out")
    assert not (tmp_path / "out").exists()
