"""A preview of tokenizing a corpus: hours, shards, batches and padding. No tokens are computed or written."""

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.corpus import journal, progress as events
from focalcodec_jax.corpus.engine import batch_shape
from focalcodec_jax.corpus.options import TokenizeOptions
from focalcodec_jax.corpus.progress import ProgressCallback
from focalcodec_jax.corpus.tokenize import list_corpus
from focalcodec_jax.inference import Axis, default_batch_seconds, local_devices
from focalcodec_jax.recordings.recording import num_samples

SAMPLED_RECORDINGS = 2000
"""Number of recordings whose headers are read to estimate the lengths of all."""


@dataclass(frozen=True)
class BatchShape:
    """Batches of one shape."""

    seconds: float
    """Padded length of a recording or window, in seconds."""
    rows: int
    """Number of recordings or windows per device."""
    share: float
    """Share of all recordings and windows."""


@dataclass(frozen=True)
class PlanSummary:
    """The plan of tokenizing a corpus, estimated from a sample of its recordings.

    Attributes:
        recordings: number of recordings.
        sampled: number of recordings whose headers were read.
        unreadable: number of those that cannot be read.
        hours: hours of audio in the corpus.
        tokens: number of tokens.
        shards: number of shards.
        batch_seconds: maximum seconds of audio per device and batch.
        batches: shapes of the batches, shortest first.
        padding_share: share of padding in all batches. None if no recording can be read.
    """

    recordings: int
    sampled: int
    unreadable: int
    hours: float
    tokens: float
    shards: int
    batch_seconds: float
    batches: tuple[BatchShape, ...]
    padding_share: float | None


def plan_summary(
    inputs: str | Path | Sequence[str | Path],
    options: TokenizeOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> PlanSummary:
    """Estimate the work of `tokenize` from the headers of randomly chosen recordings.

    Args:
        inputs, options, progress: as in `tokenize`.

    Raises:
        AudioError, CheckpointError, ConfigError: as in `tokenize`.
    """
    options = options or TokenizeOptions()
    corpus = list_corpus(inputs, options, progress or events.ignore)
    recordings, config, windows = corpus.recordings, corpus.config, corpus.windows
    batch_seconds = options.batch_seconds or default_batch_seconds(local_devices(options.device))
    sampled = random.Random(0).sample(recordings, min(SAMPLED_RECORDINGS, len(recordings)))
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(lambda recording: recording.samples or num_samples(recording), sampled))
    seconds = [length / SAMPLE_RATE_HZ for length in samples if length]
    hours = sum(seconds) / max(1, len(samples)) * len(recordings) / 3600
    axis = Axis(config.encoder.samples_per_frame, SAMPLE_RATE_HZ)
    shapes: Counter[tuple[int, int]] = Counter()
    padded = real = 0.0
    for length in seconds:
        for number in range(windows.count(length)):
            piece = min(length - number * windows.hop, windows.seconds)
            rows, width = batch_shape(axis, round(piece * SAMPLE_RATE_HZ), windows.samples, batch_seconds)
            shapes[width, rows] += 1
            padded, real = padded + width / SAMPLE_RATE_HZ, real + piece
    return PlanSummary(
        recordings=len(recordings),
        sampled=len(sampled),
        unreadable=len(samples) - len(seconds),
        hours=hours,
        tokens=hours * 3600 * config.token_rate_hz,
        shards=len(journal.divide(recordings, options.shard_hours)),
        batch_seconds=batch_seconds,
        batches=tuple(
            BatchShape(width / SAMPLE_RATE_HZ, rows, count / shapes.total())
            for (width, rows), count in sorted(shapes.items())
        ),
        padding_share=1 - real / padded if real else None,
    )
