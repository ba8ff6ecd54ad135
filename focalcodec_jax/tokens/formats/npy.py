"""One .npy file per recording. A shard is a JSONL file that names them."""

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
    id_path,
    named_errors,
    plain_row,
    read_json_lines,
    write_json_lines,
)

BLOCK_BYTES = 2**14
"""Approximate size of the lines of a block. They name about a hundred files."""


def write(folder: Folder, name: str, rows: Sequence[TokenizedRecording], columns: Columns) -> None:
    """Write the .npy files, then the shard that names them.

    Raises:
        OSError: a file cannot be written, or the disk is full.
    """
    names = [f"data/{id_path(row.recording.id)}.npy" for row in rows]
    for file, row in zip(names, rows, strict=True):
        with folder.written(file) as part:
            np.save(part, row.tokens)
    write_json_lines(folder, name, ({**plain_row(row), "file": file} for file, row in zip(names, rows, strict=True)))


def count_blocks(shard: ShardFile) -> int:
    """Number of blocks of a shard."""
    return count_byte_blocks(shard, BLOCK_BYTES)


def read_block(shard: ShardFile, block: int) -> Iterator[TokenSequence]:
    """Yield the token sequences of a block."""
    for row in read_json_lines(shard, block, BLOCK_BYTES):
        path = f"{shard.root}/{row['file']}"
        with named_errors(path, "npy"), shard.files.open(path) as file:
            toks = np.load(file, allow_pickle=False)
        yield TokenSequence(row["id"], toks)


NPY = TokenFormat("npy", ".npy", "jsonl", write, count_blocks, read_block)
