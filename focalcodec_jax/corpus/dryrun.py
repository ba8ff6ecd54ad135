"""What tokenizing a corpus would be: hours, shards, batches and their padding. Nothing is computed or written."""

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table

from focalcodec_jax.config import SAMPLE_RATE_HZ, CodecConfig
from focalcodec_jax.corpus.engine import batch_shape
from focalcodec_jax.corpus.journal import Shard
from focalcodec_jax.inference import Axis
from focalcodec_jax.recordings.recording import Recording, num_samples
from focalcodec_jax.recordings.windows import Windows

SAMPLE = 2000
"""Recordings whose headers are read, to know their lengths."""


def show(
    recordings: Sequence[Recording],
    shards: Sequence[Shard],
    config: CodecConfig,
    windows: Windows,
    batch_seconds: float,
) -> None:
    """Print the plan, from the headers of some recordings chosen at random."""
    chosen = random.Random(0).sample(recordings, min(SAMPLE, len(recordings)))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda recording: recording.samples or num_samples(recording), chosen))
    seconds = [samples / SAMPLE_RATE_HZ for samples in found if samples]
    hours = sum(seconds) / max(1, len(found)) * len(recordings) / 3600
    axis = Axis(config.encoder.samples_per_frame, SAMPLE_RATE_HZ)
    pieces: Counter[int] = Counter()
    padded = real = 0.0
    for length in seconds:
        for number in range(windows.count(length)):
            piece = min(length - number * windows.hop, windows.seconds)
            _, shape = batch_shape(axis, round(piece * SAMPLE_RATE_HZ), windows.samples, batch_seconds)
            pieces[shape] += 1
            padded, real = padded + shape / SAMPLE_RATE_HZ, real + piece
    out = Console()
    about = "" if len(chosen) == len(recordings) else "about "
    unread = len(found) - len(seconds)
    out.print(
        f"{len(recordings):,} recordings, {about}{hours:,.2f} h, in {len(shards)} shard(s); {about}"
        f"{hours * 3600 * config.token_rate_hz:,.0f} tokens"
        + (f"; {unread} of {len(found)} looked at cannot be read" if unread else ""),
        highlight=False,
        soft_wrap=True,
    )
    table = Table(title=f"batches of at most {batch_seconds:g} s a device")
    for column in ("length (s)", "rows a device", "recordings or windows"):
        table.add_column(column, justify="right")
    for shape, count in sorted(pieces.items()):
        rows, _ = batch_shape(axis, shape, windows.samples, batch_seconds)
        table.add_row(f"{shape / SAMPLE_RATE_HZ:.2f}", str(rows), f"{100 * count / pieces.total():.1f} %")
    out.print(table)
    if real:
        out.print(f"padding: {100 * (1 - real / padded):.1f} % of what is computed", highlight=False)
