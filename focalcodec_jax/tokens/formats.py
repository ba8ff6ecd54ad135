"""Token data sets on disk: Parquet, ArrayRecord, JSONL, or a .npy file a recording."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from focalcodec_jax.files import Folder
from focalcodec_jax.recordings.recording import Recording, pack

INFO, FAILURES = "dataset_info.json", "failures.jsonl"
OWN_COLUMNS = ("id", "tokens", "duration", "source")
NAME_BYTES = 200
"""Longest part of a path that is made of an id; file systems allow 255, and temporary names are longer."""
GROUP_ROWS, GROUP_TOKENS = 1000, 2**20
"""What is read at once, at most: little enough for readers that want recordings in any order."""


class Format(StrEnum):
    parquet = "parquet"
    array_record = "array_record"
    jsonl = "jsonl"
    npy = "npy"


@dataclass(frozen=True)
class Row:
    """A recording's tokens."""

    recording: Recording
    tokens: np.ndarray
    """(tokens,)."""
    duration: float
    """Seconds of audio."""


def shard_stem(number: int) -> str:
    return f"tokens-{number:05d}"


def shard_name(format: Format, number: int) -> str:
    return f"data/{shard_stem(number)}.{'jsonl' if format is Format.npy else format.value}"


def token_dtype(codebook_size: int) -> np.dtype:
    return np.dtype("<u2" if codebook_size <= 2**16 else "<u4")


def columns(recordings: Sequence[Recording]) -> dict[str, pa.DataType]:
    """Names and types of the manifests' own columns, over all recordings, so that all shards agree.

    Values of several types in one column are kept as JSON, in text; so are objects, whose keys may differ.
    """
    names = dict.fromkeys(name for recording in recordings for name in recording.columns)
    found = {}
    for name in names:
        values = [recording.columns.get(name) for recording in recordings]
        try:
            kind = pa.array(values).type  # `infer_type` promises more than arrays can hold
        except (pa.ArrowException, OverflowError):
            kind = pa.null()
        found[name] = pa.string() if pa.types.is_null(kind) or pa.types.is_nested(_element(kind)) else kind
    return found


def _element(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_list(kind) else kind


def own_name(column: str) -> str:
    """Name of a manifest's column in the data set, where it does not meet ours."""
    return f"manifest_{column}" if column in OWN_COLUMNS else column


def write(folder: Folder, format: Format, number: int, rows: Sequence[Row], extra: dict[str, pa.DataType]) -> None:
    """Write a shard; it appears whole or not at all.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    if format is Format.npy:
        for row in rows:
            with folder.written(npy_name(row.recording)) as part:
                np.save(part, row.tokens)
    with folder.written(shard_name(format, number)) as part:
        WRITERS[format](part, rows, extra)


def path_of(id_: str) -> str:
    """A path below a folder, whatever an id holds; different for different ids."""
    return "/".join(map(_name, id_.split("/")))


def _name(part: str) -> str:
    name = "".join(letter if letter.isalnum() else quote(letter, safe=" ,+=@~()[]'&!") for letter in part)
    if len(name.encode()) > NAME_BYTES:
        digest = hashlib.sha256(part.encode()).hexdigest()[:16]
        name = f"{name.encode()[: NAME_BYTES - 17].decode(errors='ignore')}~{digest}"
    if set(name) <= {"."}:  # no name is empty, and none means this folder or the one above
        return name.replace(".", "%2E") or "%2F"
    return name


def npy_name(recording: Recording) -> str:
    return f"data/{path_of(recording.id)}.npy"


def _parquet(path: Path, rows: Sequence[Row], extra: dict[str, pa.DataType]) -> None:
    tokens = [row.tokens for row in rows]
    dtype = tokens[0].dtype if tokens else np.dtype("<u2")
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
    flat = np.concatenate(tokens) if tokens else np.zeros(0, dtype)
    arrays: dict[str, pa.Array] = {
        "id": pa.array([row.recording.id for row in rows], pa.string()),
        "tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
        "duration": pa.array([row.duration for row in rows], pa.float64()),
        "source": pa.array([row.recording.source for row in rows], pa.string()),
    }
    for name, kind in extra.items():
        values = [row.recording.columns.get(name) for row in rows]
        if pa.types.is_string(kind):
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        arrays[own_name(name)] = pa.array(values, kind)
    group_rows = min(GROUP_ROWS, max(1, GROUP_TOKENS * len(rows) // max(1, len(flat))))
    pq.write_table(pa.table(arrays), path, compression="zstd", row_group_size=group_rows)


def _plain(row: Row) -> dict[str, Any]:
    own = {"id": row.recording.id, "duration": row.duration, "source": row.recording.source}
    return own | {own_name(name): value for name, value in row.recording.columns.items()}


def _array_record(path: Path, rows: Sequence[Row], extra: dict[str, pa.DataType]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        writer.write(pack({**_plain(row), "dtype": row.tokens.dtype.name}, row.tokens.tobytes()))
    writer.close()


def _jsonl(path: Path, rows: Sequence[Row], extra: dict[str, pa.DataType]) -> None:
    _lines(path, ({**_plain(row), "tokens": row.tokens.tolist()} for row in rows))


def _npy(path: Path, rows: Sequence[Row], extra: dict[str, pa.DataType]) -> None:
    _lines(path, ({**_plain(row), "file": npy_name(row.recording)} for row in rows))


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


WRITERS: dict[Format, Callable[[Path, Sequence[Row], dict[str, pa.DataType]], None]] = {
    Format.parquet: _parquet,
    Format.array_record: _array_record,
    Format.jsonl: _jsonl,
    Format.npy: _npy,
}
