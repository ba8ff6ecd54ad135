"""JSONL shards. Each line is a JSON object with one recording."""

from collections.abc import Iterator, Sequence

import numpy as np

from focalcodec_jax.files import Folder
from focalcodec_jax.tokens.formats.base import (
    Columns,
    ShardFile,
    TokenFormat,
    TokenizedRecording,
    TokenSequence,
    count_byte_blocks,
    plain_row,
    read_json_lines,
    write_json_lines,
)

BLOCK_BYTES = 2**22
"""Approximate size of a block."""


def write(folder: Folder, name: str, rows: Sequence[TokenizedRecording], columns: Columns) -> None:
    """Write a shard.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    write_json_lines(folder, name, ({**plain_row(row), "tokens": row.tokens.tolist()} for row in rows))


def count_blocks(shard: ShardFile) -> int:
    """Number of blocks of a shard."""
    return count_byte_blocks(shard, BLOCK_BYTES)


def read_block(shard: ShardFile, block: int) -> Iterator[TokenSequence]:
    """Yield the token sequences of a block."""
    for row in read_json_lines(shard, block, BLOCK_BYTES):
        yield TokenSequence(row["id"], np.array(row["tokens"]))


JSONL = TokenFormat("jsonl", "JSONL", "jsonl", write, count_blocks, read_block, datasets_loader="json")
