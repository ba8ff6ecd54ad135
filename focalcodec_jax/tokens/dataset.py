"""Random access to a token data set, in the blocks in which it is read: a row group of Parquet, or some megabytes of
another format. No file stays open."""

import hashlib
import io
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from focalcodec_jax.errors import TokenError, require
from focalcodec_jax.files import filesystem, is_url
from focalcodec_jax.recordings.recording import unpack
from focalcodec_jax.tokens.formats import INFO, Format, shard_name, token_dtype

Row = tuple[str, np.ndarray]
"""A recording's id and its tokens, (tokens,)."""

BLOCK_BYTES = {Format.array_record: 2**20, Format.jsonl: 2**22, Format.npy: 2**14}
"""Size of a block, about. Of npy it is that of the lines that name the files, some hundred of them."""

UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError)
"""What truncated or foreign shards raise in the several readers."""


class Blocks:
    """Random access to the blocks of a token data set: each a list of recordings' ids and tokens, unsigned integers.

    Raises:
        TokenError: not a finished token data set, or one of its shards is missing or unreadable.
    """

    def __init__(self, folder: str | Path):
        self.folder = str(folder).rstrip("/")
        self.files, self.root = filesystem(self.folder)
        self.info = info = self._info()
        try:
            self.format = Format(info["format"])
            self.codebook_size = int(info["codebook_size"])
            shards, tokens = int(info["shards"]), int(info["tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise TokenError(
                f"{self.folder}/{INFO} is not that of a token data set ({type(error).__name__}: {error}); it gives "
                f"codebook_size, shards, tokens, and as format one of {', '.join(Format)}"
            ) from error
        if min(shards, tokens) < 1:
            raise TokenError(f"{self.folder} holds no tokens")
        if self.format is Format.array_record:
            require("reading ArrayRecord shards", "train", "array_record")
            if is_url(folder):
                raise TokenError(f"{folder} holds ArrayRecord shards, which are read from a disk here; copy it to one")
        with ThreadPoolExecutor(16) as pool:  # beyond this machine, each is a round trip or two
            counts = list(pool.map(self._count, range(shards)))
        self.ends = np.cumsum(counts)
        """Blocks to the end of each shard, (shards,)."""
        self.digest = hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
        """Of what the data set says of itself."""
        self.mean_tokens = tokens / max(1, len(self))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> list[Row]:
        """
        Raises:
            TokenError: the shard is unreadable, or holds what is no token of the codebook.
        """
        shard = int(np.searchsorted(self.ends, index, side="right"))
        path = self._path(shard)
        with self._named(path):
            rows = list(self._rows(path, index - (int(self.ends[shard - 1]) if shard else 0)))
            for _, toks in rows:
                if toks.ndim != 1 or (
                    toks.size and (toks.dtype.kind not in "iu" or toks.min() < 0 or toks.max() >= self.codebook_size)
                ):
                    raise ValueError(f"not all its tokens are integers from 0 to {self.codebook_size - 1}")
        return [(id_, toks.astype(token_dtype(self.codebook_size), copy=False)) for id_, toks in rows]

    def _info(self) -> Any:
        path = f"{self.root}/{INFO}"
        try:
            return json.loads(self.files.cat_file(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "is not a finished token data set" if self.files.exists(self.root) else "does not exist"
            raise TokenError(
                f"{self.folder} {what}; give the folder of one, where tokenize has written {INFO}, which comes last"
            ) from error
        except ValueError as error:
            raise TokenError(f"{self.folder}/{INFO} is not JSON: {error}") from error

    def _path(self, shard: int) -> str:
        return f"{self.root}/{shard_name(self.format, shard)}"

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        try:
            yield
        except TokenError:
            raise
        except UNREADABLE as error:
            raise TokenError(
                f"{path} is missing, truncated, or not {self.format} of tokens: {error}; copy the data set again, or "
                "make it again"
            ) from error

    def _count(self, shard: int) -> int:
        path = self._path(shard)
        with self._named(path):
            if self.format is Format.parquet:
                with self.files.open(path) as file:
                    return pq.ParquetFile(file).num_row_groups
            return self._by_size(path)

    def _by_size(self, path: str) -> int:
        """Blocks of a shard of another format than Parquet."""
        size = self.files.size(path)
        if not size and self.format is Format.array_record:  # its reader takes this for a shard without records
            raise ValueError("the file is empty")
        return -(-size // BLOCK_BYTES[self.format])

    def _rows(self, path: str, block: int) -> Iterator[Row]:
        if self.format is Format.array_record:
            yield from _array_record_rows(path, block, self._by_size(path))
            return
        with self.files.open(path) as file:
            if self.format is Format.parquet:
                yield from _parquet_rows(file, block)
                return
            size = BLOCK_BYTES[self.format]
            for line in _lines(file, block * size, (block + 1) * size):
                row = json.loads(line)
                yield row["id"], self._array(row["file"]) if self.format is Format.npy else np.array(row["tokens"])

    def _array(self, name: str) -> np.ndarray:
        with self._named(f"{self.root}/{name}"), self.files.open(f"{self.root}/{name}") as file:
            return np.load(file, allow_pickle=False)


def _parquet_rows(file: io.IOBase, group: int) -> Iterator[Row]:
    for batch in pq.ParquetFile(file).read_row_group(group, columns=["id", "tokens"]).to_batches():
        values = batch["tokens"].values.to_numpy(zero_copy_only=False)
        bounds = itertools.pairwise(batch["tokens"].offsets.to_numpy())
        for id_, (first, last) in zip(batch["id"].to_pylist(), bounds, strict=True):
            yield id_, values[first:last]


def _array_record_rows(path: str, block: int, blocks: int) -> Iterator[Row]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(path)
    try:
        count = reader.num_records()
        for record in reader.read(list(range(count * block // blocks, count * (block + 1) // blocks))):
            header, toks = unpack(record)
            yield header["id"], np.frombuffer(toks, np.dtype(header["dtype"]).newbyteorder("<"))
    finally:
        reader.close()


def _lines(file: io.IOBase, first: int, last: int) -> Iterator[bytes]:
    """The lines of a file that begin in its bytes `first` … `last` − 1."""
    place = max(first - 1, 0)
    file.seek(place)
    if first:
        place += len(file.readline())
    while place < last and (line := file.readline()):
        place += len(line)
        yield line
