"""Token data sets as sequences of equal length, for training language models.

The unit of reading is a block: a row group of Parquet, or a few megabytes of another format. With a seed, the blocks
are shuffled, and the recordings of consecutive blocks are mixed within windows of 16 million tokens.

Each block is read sequentially, and no file stays open. Memory contains the tokens of three windows (100 MB), or of
three blocks if a block is larger. It does not grow with the data set, except for one number per shard.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from focalcodec_jax.errors import TokenError, require
from focalcodec_jax.tokens.dataset import TokenDataset
from focalcodec_jax.tokens.formats.base import TokenSequence

if TYPE_CHECKING:
    from grain import IterDataset
else:
    IterDataset = Any  # a plain install does not contain grain

MIXED_TOKENS = 2**24
"""Number of tokens in a window of recordings that are mixed: 93 hours at 50 tokens per second."""


@dataclass(frozen=True)
class ReadSchedule:
    """Number of passes over a data set, and its division among processes.

    Attributes:
        epochs: number of passes over the data. None repeats it forever. Processes that train together need None,
            because their numbers of sequences can differ by one.
        process_index: index of this process, from 0. It reads every `process_count`-th block.
        process_count: number of processes that share the data set.
    """

    epochs: int | None = 1
    process_index: int = 0
    process_count: int = 1


def packed_sequences(
    folder: str | Path,
    length: int,
    *,
    separator: int | None = None,
    offset: int = 0,
    seed: int | None = None,
    schedule: ReadSchedule | None = None,
) -> IterDataset:
    """Concatenate all recordings of a token data set, and cut them into sequences of equal length.

    Each sequence is a dict of three int32 arrays of shape (length,). `tokens` are the tokens. `segment_ids` number the
    recordings in the sequence from 1, and are 0 for padding. `positions` count from 0 within each recording. Every
    token occurs once per epoch, and only the last sequence is padded, with zeros. Call `.batch(8)` for batches.

    Iterators are grain's. Their state (`get_state`, `set_state`, or grain's checkpoints) resumes the iteration exactly,
    provided that all arguments are the same.

    Args:
        folder: path of a finished data set. Parquet, JSONL and npy can also be at a URL such as s3://bucket/tokens.
        length: tokens per sequence.
        separator: token to insert after each recording, such as an end-of-sequence token. The offset is not added to
            it.
        offset: number to add to each speech token, such as the size of a text vocabulary.
        seed: seed of the shuffling, whose order differs in each epoch. None keeps the order of the data set.
        schedule: epochs and division among processes. The default is one epoch in one process.

    Returns:
        A grain data set, which can be iterated.

    Raises:
        TokenError: the folder is not a finished token data set, a shard is unreadable, there are fewer blocks than
            processes, or an argument is invalid. The iteration also raises it if a shard turns out to be damaged.
        ConfigError: grain is not installed, or the protocol of the URL is unknown.
    """
    require("packing token sequences", "train", "grain")
    import grain

    schedule = schedule or ReadSchedule()
    dataset = TokenDataset(folder)
    _check_tokens(dataset.codebook_size, length, separator, offset)
    _check_schedule(dataset, schedule)
    blocks = grain.MapDataset.source(dataset)
    if seed is not None:
        blocks = blocks.shuffle(seed)
    mixed_blocks = math.ceil(MIXED_TOKENS / dataset.mean_tokens)
    windows = blocks[schedule.process_index :: schedule.process_count].batch(mixed_blocks, batch_fn=_joined)
    if seed is not None:
        windows = windows.random_map(_mixed, seed=seed)
    # read the next window while one is used
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    windows = windows.repeat(schedule.epochs).to_iter_dataset(options)

    def features(row: np.ndarray) -> dict[str, np.ndarray]:
        toks = row.astype(np.int32) + np.int32(offset)
        return {"tokens": toks if separator is None else np.append(toks, np.int32(separator))}

    return _packed(windows, length, features).map(_named)


def _check_tokens(codebook_size: int, length: int, separator: int | None, offset: int) -> None:
    last = offset + codebook_size - 1
    if length < 1:
        raise TokenError(f"sequences have a length of at least one token, not {length}")
    if offset < 0 or last >= 2**31:
        raise TokenError(f"offset {offset} makes tokens {offset} to {last}; they must be between 0 and {2**31 - 1}")
    if separator is not None and (not 0 <= separator < 2**31 or offset <= separator <= last):
        raise TokenError(f"separator {separator} is not an int32, or one of the speech tokens, {offset} to {last}")


def _check_schedule(dataset: TokenDataset, schedule: ReadSchedule) -> None:
    index, count = schedule.process_index, schedule.process_count
    if not 0 <= index < count:
        raise TokenError(f"there is no process {index} of {count}; they are counted from 0")
    if len(dataset) < count:
        raise TokenError(
            f"{dataset.folder} is read in {len(dataset)} blocks, too few for {count} processes; "
            "use fewer processes, or tokenize again with a smaller `shard_hours`"
        )


def _joined(blocks: Sequence[list[TokenSequence]]) -> list[np.ndarray]:
    return [toks for block in blocks for _, toks in block if toks.size]


def _mixed(rows: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    return [rows[place] for place in rng.permutation(len(rows))]


def _named(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("tokens_"): array for name, array in packed.items()}


def _packed(windows: IterDataset, length: int, features: Callable[[np.ndarray], dict[str, np.ndarray]]) -> IterDataset:
    """Flatten lists of rows, compute the features of each row, and concatenate and split the features."""
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
                # Grain 0.2.18 compares the slices with tuples and drops a row if they are lists, as JSON stores them.
                slices = {name: tuple(places) for name, places in state["remainder_slices"].items()}
                restore({**state, "remainder_slices": slices})

            iterator.set_state = set_state
            return iterator

    rows = grain.experimental.FlatMapIterDataset(windows, Rows()).map(features)
    return Packed(rows, length_struct={"tokens": length})
