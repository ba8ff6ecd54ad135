"""`focalcodec-jax tokenize` gives the tokens of `Codec.encode`, in all formats, with all columns and in windows."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from array_record.python.array_record_module import ArrayRecordReader
from support.corpora import encoded, rows, tokenize
from support.token_data import BY_HAND
from support.training import voiced

from focalcodec_jax import Codec
from focalcodec_jax.corpus import journal
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.recording import Recording, unpack
from focalcodec_jax.tokens.formats.base import id_path


def test_tokens_are_those_of_encode(codec: Codec, folder: Path, tmp_path: Path):
    """Recordings are read in worker processes, batched, written to several shards, and checked at the end."""
    options = ("--workers", "2", "--check", "8", "--shard-hours", "0.001")
    printed = tokenize(folder, "-o", tmp_path / "out", *options)
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
    assert "miss rate 0.00 %" in printed
    assert "12 recordings" in printed


@pytest.mark.parametrize("format", BY_HAND)
def test_formats_hold_the_same(codec: Codec, folder: Path, tmp_path: Path, format: str):
    listing = tmp_path / "list.jsonl"
    entries = [
        {"id": f"a/{n}", "path": f"{folder}/u0{n}.{s}", "speaker": n, "duration": "?"}
        for n, s in ((1, "flac"), (3, "mp3"))
    ]
    listing.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    tokenize(listing, "-o", tmp_path / "out", "--format", format)
    name = f"{tmp_path}/out/data/tokens-00000"
    if format == "parquet":
        found = rows(tmp_path / "out")
    elif format == "array_record":
        reader = ArrayRecordReader(f"{name}.array_record")
        pairs = [unpack(record) for record in reader.read_all()]
        found = [header | {"tokens": np.frombuffer(body, header.pop("dtype"))} for header, body in pairs]
    else:
        found = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
        for row in found:
            if format == "npy":
                row["tokens"] = np.load(tmp_path / "out" / row.pop("file"))
    for row, entry in zip(found, entries, strict=True):
        np.testing.assert_array_equal(row.pop("tokens"), encoded(codec, entry["path"]))
        seconds = len(audio.read(entry["path"])) / 16_000
        expected = {"id": entry["id"], "source": entry["path"], "speaker": entry["speaker"]}
        assert row == expected | {"duration": seconds, "manifest_duration": "?"}
    assert json.loads((tmp_path / "out/dataset_info.json").read_text())["format"] == format
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


def test_names_of_any_id_fit_a_file_system():
    ids = ["a/b", "%", "", "..", "音" * 60, "音" * 200, "音" * 201, "é" * 150, "a" * 250, "a" * 251, "a:b", "a%3Ab"]
    names = [id_path(id_) for id_ in ids]
    assert len(set(names)) == len(ids)
    assert names[4] == ids[4]
    assert all(0 < len(part.encode()) <= 200 and part not in (".", "..") for name in names for part in name.split("/"))


def test_long_recordings_are_joined_from_windows(codec: Codec, tmp_path: Path):
    """A window keeps the tokens of encoding it by itself, and the number of tokens is that of the whole recording."""
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


def test_dry_run_computes_nothing(folder: Path, tmp_path: Path):
    printed = tokenize(folder, "-o", tmp_path / "out", "--dry-run")
    assert "12 recordings" in printed
    assert "padding" in printed
    assert not (tmp_path / "out").exists()


def test_shards_are_a_thousandth_of_the_corpus_within_limits():
    long = [Recording(str(n), "a", samples=16_000 * 3600) for n in range(3000)]
    assert len(journal.divide(long)) == 1000
    assert len(journal.divide(long[:4], 0.5)) == 4
    assert len(journal.divide([Recording(str(n), "a", samples=16_000) for n in range(1800)])) == 1
    pieces = journal.divide(long, 7)
    assert [pieces[0].first, *(piece.last for piece in pieces)] == [*(piece.first for piece in pieces), 3000]
