"""Sequences of one length for training a language model, from token data sets as `focalcodec-jax tokenize` writes them.

What is read at once is a block: a row group of Parquet, or some megabytes of another format. With a seed, blocks come
in any order, and the recordings of as many as make 16 million tokens are mixed. So every read is sequential, and memory
does not grow with the data set: it holds three times those tokens (100 MB), or three blocks where a block is larger,
and one number a shard. No file stays open.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from focalcodec_jax.errors import TokenError, require
from focalcodec_jax.tokens.dataset import Blocks, Row

if TYPE_CHECKING:
    from grain import IterDataset
else:
    IterDataset = Any  # grain is not in a plain install

MIXED_TOKENS = 2**24
"""Tokens whose recordings are mixed: 93 hours at 50 a second."""


def packed_sequences(
    folder: str | Path,
    length: int,
    *,
    separator: int | None = None,
    offset: int = 0,
    seed: int | None = None,
    epochs: int | None = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> IterDataset:
    """All recordings of a token data set, one after another, cut into sequences of one length.

    Each is a dict of int32 arrays of shape (length,): `tokens`; `segment_ids`, 1, 2, … for the recordings in it and
    0 for padding; `positions` from 0 in each of those. Every token comes once in an epoch, and only the end of the last
    sequence is padded, with zeros. Iterators are grain's: with the state of one (`get_state`, `set_state`, or grain's
    checkpoints) the rest comes again, if the arguments are the same. `.batch(8)` makes batches.

    Args:
        folder: a finished data set; Parquet, JSONL and npy also at a URL such as s3://bucket/tokens.
        separator: token put after each recording, such as the end of sequence; no offset is added to it.
        offset: added to each speech token, so that they follow a vocabulary of text.
        seed: of the shuffling, which differs in each epoch; None keeps the order of the data set.
        epochs: how often to go through the data; None is for ever, which is right for processes that step together,
            because one may have a sequence more than another.
        process_index: this one of `process_count` processes: it takes every `process_count`-th block.

    Raises:
        TokenError: not a finished token data set, one with an unreadable shard, fewer blocks than processes, or
            arguments that do not fit. The iteration raises it for what is found unreadable only then.
        ConfigError: grain is not installed, or the folder is a URL of an unknown kind.
    """
    require("packing token sequences", "train", "grain")
    import grain

    blocks = Blocks(folder)
    _check(blocks, length, separator, offset, process_index, process_count)
    read = grain.MapDataset.source(blocks)
    if seed is not None:
        read = read.shuffle(seed)
    mixed_blocks = math.ceil(MIXED_TOKENS / blocks.mean_tokens)
    windows = read[process_index::process_count].batch(mixed_blocks, batch_fn=_joined)
    if seed is not None:
        windows = windows.random_map(_mixed, seed=seed)
    # the next window is read while one is used
    windows = windows.repeat(epochs).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))

    def features(row: np.ndarray) -> dict[str, np.ndarray]:
        toks = row.astype(np.int32) + np.int32(offset)
        return {"tokens": toks if separator is None else np.append(toks, np.int32(separator))}

    return _packed(windows, length, features).map(_named)


def _check(
    blocks: Blocks, length: int, separator: int | None, offset: int, process_index: int, process_count: int
) -> None:
    last = offset + blocks.codebook_size - 1
    if length < 1:
        raise TokenError(f"sequences have a length of at least one token, not {length}")
    if offset < 0 or last >= 2**31:
        raise TokenError(f"offset {offset} makes tokens {offset} to {last}; they lie between 0 and {2**31 - 1}")
    if separator is not None and (not 0 <= separator < 2**31 or offset <= separator <= last):
        raise TokenError(f"separator {separator} is not an int32, or one of the speech tokens, {offset} to {last}")
    if not 0 <= process_index < process_count:
        raise TokenError(f"process {process_index} of {process_count}; they are counted from 0")
    if len(blocks) < process_count:
        raise TokenError(
            f"{blocks.folder} is read in {len(blocks)} blocks, too few for {process_count} processes; "
            "give fewer processes, or tokenize with smaller shards (--shard-hours)"
        )


def _joined(blocks: Sequence[list[Row]]) -> list[np.ndarray]:
    return [toks for block in blocks for _, toks in block if toks.size]


def _mixed(rows: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    return [rows[place] for place in rng.permutation(len(rows))]


def _named(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("tokens_"): array for name, array in packed.items()}


def _packed(windows: IterDataset, length: int, features: Callable[[np.ndarray], dict[str, np.ndarray]]) -> IterDataset:
    """Lists of rows → their features, concatenated and split."""
    import grain

    class Rows(grain.experimental.FlatMapTransform):
        max_fan_out = sys.maxsize

        def flat_map(self, element: list[np.ndarray]) -> list[np.ndarray]:
            return element

    class Packed(grain.experimental.ConcatThenSplitIterDataset):
        def __iter__(self):
            iterator = super().__iter__()
            restore = iterator.set_state

            def set_state(state: dict[str, Any]) -> None:
                # Grain 0.2.18 compares these with a tuple, and drops a row if they are lists, as checkpoints in JSON
                # make them.
                slices = {name: tuple(places) for name, places in state["remainder_slices"].items()}
                restore({**state, "remainder_slices": slices})

            iterator.set_state = set_state
            return iterator

    rows = grain.experimental.FlatMapIterDataset(windows, Rows()).map(features)
    return Packed(rows, length_struct={"tokens": length})
