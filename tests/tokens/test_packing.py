"""Token data sets as sequences of one length: every token occurs once, in every format, and iterators resume."""

import io
import itertools
import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from support.token_data import BY_HAND, ROWS, SHARDS, dataset

from focalcodec_jax.errors import ConfigError, TokenError
from focalcodec_jax.tokens import packing
from focalcodec_jax.tokens.formats import array_record, jsonl, npy
from focalcodec_jax.tokens.formats.base import lines_within
from focalcodec_jax.tokens.packing import ReadSchedule, packed_sequences

END = 8192


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks and windows small, so that the data sets of these tests have several."""
    monkeypatch.setattr(packing, "MIXED_TOKENS", 100)
    for module, size in ((array_record, 200), (jsonl, 150), (npy, 150)):
        monkeypatch.setattr(module, "BLOCK_BYTES", size)


def recordings(sequences: list[dict[str, np.ndarray]], offset: int = 0) -> list[list[int]]:
    """The recordings in packed sequences, split at the separators. Only the end may be padded."""
    used = np.concatenate([sequence["segment_ids"] > 0 for sequence in sequences])
    toks = np.concatenate([sequence["tokens"] for sequence in sequences])
    assert not toks[~used].any()
    assert not used[used.argmin() :].any() or used.all()
    ends = np.flatnonzero(toks == END)
    return [(row[row != END] - offset).tolist() for row in np.split(toks[used], ends + 1)[:-1]]


@pytest.mark.parametrize("format", BY_HAND)
def test_every_token_comes_once(format: str, tmp_path: Path):
    folder = dataset(tmp_path, format)
    kept = list(packed_sequences(folder, 16, separator=END))
    assert recordings(kept) == ROWS
    assert len(kept) == -(-sum(len(row) + 1 for row in ROWS) // 16)
    for sequence in kept:
        assert sequence.keys() == {"tokens", "segment_ids", "positions"}
        assert {(array.shape, array.dtype.name) for array in sequence.values()} == {((16,), "int32")}
    mixed = recordings(list(packed_sequences(folder, 16, separator=END, offset=50_000, seed=0)), 50_000)
    assert mixed != ROWS
    assert sorted(mixed) == sorted(ROWS)


@pytest.mark.parametrize("format", ["parquet", "jsonl", "npy"])
def test_at_a_url(format: str):
    folder = dataset(f"memory://packing/{format}", format)
    assert recordings(list(packed_sequences(folder, 16, separator=END))) == ROWS


def test_segments_and_positions(tmp_path: Path):
    shard = [np.array(row, np.uint16) for row in ([1, 2, 3], [4, 5, 6, 7, 8, 9], [], [10, 11])]
    folder = dataset(tmp_path, shards=[shard])
    got = {
        name: [sequence[name].tolist() for sequence in packed_sequences(folder, 4, offset=100)]
        for name in ("tokens", "segment_ids", "positions")
    }
    assert got == {
        "tokens": [[101, 102, 103, 104], [105, 106, 107, 108], [109, 110, 111, 0]],
        "segment_ids": [[1, 1, 1, 2], [1, 1, 1, 1], [1, 2, 2, 0]],
        "positions": [[0, 1, 2, 0], [0, 1, 2, 3], [0, 0, 1, 0]],
    }


@pytest.mark.parametrize("seed", [None, 3])
def test_resumes_anywhere(seed: int | None, tmp_path: Path):
    """Resume from a state in JSON, as in grain's checkpoints, also where a recording and a sequence end together."""
    data = packed_sequences(dataset(tmp_path, shards=SHARDS[:3]), 8, seed=seed, schedule=ReadSchedule(epochs=2))
    want = [sequence["tokens"].tolist() for sequence in data]
    iterator, states = iter(data), []
    for _ in want:
        states.append(json.dumps(iterator.get_state()))
        next(iterator)
    states.append(json.dumps(iterator.get_state()))
    boundaries = sum(json.loads(state)["remainder_slices"]["tokens"] == [-1, -1] for state in states)
    assert 1 < boundaries < len(states)
    for cut in range(len(states)):
        iterator.set_state(json.loads(states[cut]))
        rest = iterator if cut == 5 else itertools.islice(iterator, 3)
        assert [sequence["tokens"].tolist() for sequence in rest] == want[cut : None if cut == 5 else cut + 3]


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_processes_share_without_loss(format: str, tmp_path: Path):
    folder = dataset(tmp_path, format)
    found = []
    for index in range(3):
        share = packed_sequences(folder, 16, separator=END, seed=1, schedule=ReadSchedule(1, index, 3))
        found += recordings(list(share))
    assert sorted(found) == sorted(ROWS)


def test_seeds_and_epochs(tmp_path: Path):
    folder = dataset(tmp_path)

    def order(**options) -> list[list[int]]:
        return recordings(list(packed_sequences(folder, 16, separator=END, **options)))

    once = order(seed=0)
    assert once == order(seed=0)
    assert once != order(seed=1)
    twice = order(seed=0, schedule=ReadSchedule(epochs=2))
    assert twice[: len(ROWS)] == once
    assert twice[len(ROWS) :] != once
    assert sorted(twice) == sorted(2 * ROWS)
    assert order(schedule=ReadSchedule(epochs=2)) == 2 * ROWS
    forever = packed_sequences(folder, 16, schedule=ReadSchedule(epochs=None))
    assert sum(1 for _ in zip(forever, range(200), strict=False)) == 200


def test_batches(tmp_path: Path):
    batch = next(iter(packed_sequences(dataset(tmp_path), 16, seed=0).batch(8)))
    assert {name: array.shape for name, array in batch.items()} == dict.fromkeys(batch, (8, 16))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_each_line_is_in_one_block(size: int):
    text = b"a\n\nbcdef\ng\nhi"
    found = [
        line for first in range(0, len(text), size) for line in lines_within(io.BytesIO(text), first, first + size)
    ]
    assert found == text.splitlines(keepends=True)


def test_folders_that_are_no_data_sets(tmp_path: Path):
    with pytest.raises(TokenError, match="nothing does not exist; give the folder"):
        packed_sequences(tmp_path / "nothing", 16)
    with pytest.raises(
        TokenError, match=r"is not a finished token data set; .*dataset_info.json, which tokenize writes last"
    ):
        packed_sequences(tmp_path, 16)
    (tmp_path / "file").touch()
    with pytest.raises(TokenError, match="is not a finished token data set"):
        packed_sequences(tmp_path / "file", 16)
    with pytest.raises(ConfigError, match="nowhere"):
        packed_sequences("nowhere://tokens", 16)
    info = tmp_path / "dataset_info.json"
    for content, match in {
        "{": "is not JSON",
        "[]": "does not describe a token data set",
        '{"format": "zarr", "codebook_size": 8192, "shards": 1, "tokens": 9}': "'zarr' is not a format of tokens",
        '{"format": "jsonl", "codebook_size": 8192, "tokens": 9}': "KeyError: 'shards'",
        '{"format": "jsonl", "codebook_size": 8192, "shards": 1, "tokens": 0}': "contains no tokens",
    }.items():
        info.write_text(content)
        with pytest.raises(TokenError, match=match):
            packed_sequences(tmp_path, 16)


def test_array_record_at_a_url_is_refused():
    info = {"format": "array_record", "codebook_size": 8192, "shards": 1, "tokens": 9}
    fsspec.filesystem("memory").pipe_file("/packing/array_record/dataset_info.json", json.dumps(info).encode())
    with pytest.raises(TokenError, match="which can only be read from a local disk"):
        packed_sequences("memory://packing/array_record", 16)


@pytest.mark.parametrize(
    ("format", "damage"),
    [
        *itertools.product(BY_HAND, ["missing", "truncated", "foreign"]),
        # an empty file of lines is a shard in which no recording could be read
        ("parquet", "empty"),
        ("array_record", "empty"),
    ],
)
def test_damaged_shards_are_named(format: str, damage: str, tmp_path: Path):
    folder = dataset(tmp_path, format)
    shard = next(tmp_path.glob("data/tokens-00002.*"))
    content = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes({"truncated": content[: len(content) // 2], "foreign": b"x" * 5000, "empty": b""}[damage])
    with pytest.raises(TokenError, match=rf"{shard.name} is missing, truncated, or not {format}"):
        list(packed_sequences(folder, 16))


def test_tokens_that_are_none(tmp_path: Path):
    for row in ([8192], [-1], [0.5], [[1, 2]], None):
        folder = dataset(tmp_path, "jsonl")
        (tmp_path / "data/tokens-00002.jsonl").write_text(json.dumps({"id": "r", "tokens": row}) + "\n")
        with pytest.raises(TokenError, match=r"tokens-00002.jsonl .*not all its tokens are integers from 0 to 8191"):
            list(packed_sequences(folder, 16))
    folder = dataset(tmp_path, "npy")
    (tmp_path / "data/2/r3.npy").unlink()
    with pytest.raises(TokenError, match=r"r3.npy is missing"):
        list(packed_sequences(folder, 16))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"length": 0}, "at least one token, not 0"),
        ({"offset": -1}, "offset -1 makes tokens -1 to 8190"),
        ({"offset": 2**31 - 8191}, "must be between 0 and 2147483647"),
        ({"separator": 8191}, "separator 8191 is not an int32, or one of the speech tokens, 0 to 8191"),
        ({"separator": 600, "offset": 500}, "one of the speech tokens, 500 to 8691"),
        ({"separator": -1}, "separator -1 is not an int32"),
        ({"separator": 2**31}, "separator 2147483648 is not an int32"),
        ({"schedule": ReadSchedule(process_index=2, process_count=2)}, "no process 2 of 2"),
        ({"schedule": ReadSchedule(process_count=100)}, "blocks, too few for 100 processes"),
    ],
)
def test_arguments_that_do_not_fit(options: dict, match: str, tmp_path: Path):
    with pytest.raises(TokenError, match=match):
        packed_sequences(dataset(tmp_path), **{"length": 16, **options})
