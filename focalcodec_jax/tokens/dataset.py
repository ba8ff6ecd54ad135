"""Random access to a token data set in blocks. A block is a row group of Parquet, or a few megabytes of other formats.

No file stays open between reads.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from focalcodec_jax.errors import TokenError
from focalcodec_jax.files import filesystem, is_url
from focalcodec_jax.tokens.formats import FORMATS, find_format
from focalcodec_jax.tokens.formats.base import INFO, ShardFile, TokenSequence, named_errors, token_dtype


class TokenDataset:
    """A sequence of the blocks of a token data set. Each block is a list of `TokenSequence`s of unsigned integers.

    Args:
        folder: path or URL of a finished data set.

    Attributes:
        info: content of `dataset_info.json`.
        digest: SHA-256 of `info`, in hexadecimal.
        ends: (shards,) number of blocks up to the end of each shard.
        mean_tokens: average number of tokens per block.

    Raises:
        TokenError: the folder is not a finished token data set, or a shard is missing or unreadable.
    """

    def __init__(self, folder: str | Path):
        self.folder = str(folder).rstrip("/")
        self.files, self.root = filesystem(self.folder)
        self.info = info = self._read_info()
        try:
            self.format = find_format(info["format"])
            self.codebook_size = int(info["codebook_size"])
            shards, tokens = int(info["shards"]), int(info["tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise TokenError(
                f"{self.folder}/{INFO} does not describe a token data set ({type(error).__name__}: {error}); it needs "
                f"codebook_size, shards, tokens, and a format, one of {', '.join(FORMATS)}"
            ) from error
        if min(shards, tokens) < 1:
            raise TokenError(f"{self.folder} contains no tokens")
        self.format.require_packages("reading")
        if self.format.local_only and is_url(folder):
            raise TokenError(
                f"{folder} contains {self.format.title} shards, which can only be read from a local disk; "
                "copy the data set to one"
            )
        with ThreadPoolExecutor(16) as pool:  # over a network, each count needs a few round trips
            counts = list(pool.map(self._count_blocks, range(shards)))
        self.ends = np.cumsum(counts)
        self.digest = hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
        self.mean_tokens = tokens / max(1, len(self))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> list[TokenSequence]:
        """Read a block.

        Raises:
            IndexError: there is no such block.
            TokenError: the shard is unreadable, or contains values that are not tokens of the codebook.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        number = int(np.searchsorted(self.ends, index, side="right"))
        shard = self._shard(number)
        with named_errors(shard.path, self.format.name):
            first = int(self.ends[number - 1]) if number else 0
            sequences = list(self.format.read_block(shard, index - first))
            for _, toks in sequences:
                if toks.ndim != 1 or (
                    toks.size and (toks.dtype.kind not in "iu" or toks.min() < 0 or toks.max() >= self.codebook_size)
                ):
                    raise ValueError(f"not all its tokens are integers from 0 to {self.codebook_size - 1}")
        dtype = token_dtype(self.codebook_size)
        return [TokenSequence(id_, toks.astype(dtype, copy=False)) for id_, toks in sequences]

    def _read_info(self) -> Any:
        path = f"{self.root}/{INFO}"
        try:
            return json.loads(self.files.cat_file(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "is not a finished token data set" if self.files.exists(self.root) else "does not exist"
            raise TokenError(
                f"{self.folder} {what}; give the folder of a data set with {INFO}, which tokenize writes last"
            ) from error
        except ValueError as error:
            raise TokenError(f"{self.folder}/{INFO} is not JSON: {error}") from error

    def _shard(self, number: int) -> ShardFile:
        return ShardFile(self.files, self.root, self.format.shard_name(number))

    def _count_blocks(self, number: int) -> int:
        shard = self._shard(number)
        with named_errors(shard.path, self.format.name):
            return self.format.count_blocks(shard)
