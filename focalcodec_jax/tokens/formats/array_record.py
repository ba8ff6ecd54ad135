"""ArrayRecord shards. Each recording is one record, which consists of a line of JSON and the raw tokens."""

from collections.abc import Iterator, Sequence

import numpy as np

from focalcodec_jax.files import Folder
from focalcodec_jax.recordings.recording import pack, unpack
from focalcodec_jax.tokens.formats.base import (
    Columns,
    ShardFile,
    TokenFormat,
    TokenizedRecording,
    TokenSequence,
    count_byte_blocks,
    plain_row,
)

BLOCK_BYTES = 2**20
"""Average size of a block, which consists of whole records."""


def write(folder: Folder, name: str, rows: Sequence[TokenizedRecording], columns: Columns) -> None:
    """Write a shard.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with folder.written(name) as part:
        writer = ArrayRecordWriter(str(part), "group_size:1")
        for row in rows:
            writer.write(pack({**plain_row(row), "dtype": row.tokens.dtype.name}, row.tokens.tobytes()))
        writer.close()


def count_blocks(shard: ShardFile) -> int:
    """Number of blocks of a shard."""
    if not shard.size():  # the reader treats an empty file as a shard without records
        raise ValueError("the file is empty")
    return count_byte_blocks(shard, BLOCK_BYTES)


def read_block(shard: ShardFile, block: int) -> Iterator[TokenSequence]:
    """Yield the token sequences of a block."""
    from array_record.python.array_record_module import ArrayRecordReader

    blocks = count_blocks(shard)
    reader = ArrayRecordReader(shard.path)
    try:
        count = reader.num_records()
        for record in reader.read(list(range(count * block // blocks, count * (block + 1) // blocks))):
            header, toks = unpack(record)
            yield TokenSequence(header["id"], np.frombuffer(toks, np.dtype(header["dtype"]).newbyteorder("<")))
    finally:
        reader.close()


ARRAY_RECORD = TokenFormat(
    "array_record",
    "ArrayRecord",
    "array_record",
    write,
    count_blocks,
    read_block,
    packages=("array_record",),
    local_only=True,
)
