"""Parquet shards. A block is a row group."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from focalcodec_jax.files import Folder
from focalcodec_jax.tokens.formats.base import (
    Columns,
    ShardFile,
    TokenFormat,
    TokenizedRecording,
    TokenSequence,
    column_name,
)

GROUP_ROWS, GROUP_TOKENS = 1000, 2**20
"""Maximum size of a row group. It is small enough for reading recordings in random order."""


def write(folder: Folder, name: str, rows: Sequence[TokenizedRecording], columns: Columns) -> None:
    """Write a shard.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    with folder.written(name) as part:
        _write_table(part, rows, columns)


def _write_table(path: Path, rows: Sequence[TokenizedRecording], columns: Columns) -> None:
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
    for name, kind in columns.items():
        values = [row.recording.columns.get(name) for row in rows]
        if pa.types.is_string(kind):
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        arrays[column_name(name)] = pa.array(values, kind)
    group_rows = min(GROUP_ROWS, max(1, GROUP_TOKENS * len(rows) // max(1, len(flat))))
    pq.write_table(pa.table(arrays), path, compression="zstd", row_group_size=group_rows)


def count_blocks(shard: ShardFile) -> int:
    """Number of blocks of a shard."""
    with shard.open() as file:
        return pq.ParquetFile(file).num_row_groups


def read_block(shard: ShardFile, block: int) -> Iterator[TokenSequence]:
    """Yield the token sequences of a block."""
    with shard.open() as file:
        for batch in pq.ParquetFile(file).read_row_group(block, columns=["id", "tokens"]).to_batches():
            values = batch["tokens"].values.to_numpy(zero_copy_only=False)
            bounds = itertools.pairwise(batch["tokens"].offsets.to_numpy())
            for id_, (first, last) in zip(batch["id"].to_pylist(), bounds, strict=True):
                yield TokenSequence(id_, values[first:last])


PARQUET = TokenFormat("parquet", "Parquet", "parquet", write, count_blocks, read_block, datasets_loader="parquet")
