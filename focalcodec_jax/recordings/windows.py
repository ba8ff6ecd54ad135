"""Cutting long recordings into overlapping windows, and joining what comes of them."""

import math
from dataclasses import dataclass

import numpy as np

from focalcodec_jax.config import SAMPLE_RATE_HZ, CodecConfig
from focalcodec_jax.errors import ConfigError

WINDOW_SECONDS, CONTEXT_SECONDS = 60, 2


@dataclass(frozen=True)
class Windows:
    """Recordings longer than `seconds` are cut into windows of that length. Of a window `context` seconds at each end
    only inform the rest, and come from the windows beside it.

    Whole seconds are whole samples at any rate, so that a window can be read by itself.
    """

    seconds: int
    context: int

    @property
    def hop(self) -> int:
        """Seconds from one window to the next."""
        return self.seconds - 2 * self.context

    @property
    def samples(self) -> int:
        """Length of a window at 16 kHz."""
        return self.seconds * SAMPLE_RATE_HZ

    def count(self, seconds: float) -> int:
        """Windows of a recording that lasts `seconds`; a whole one is one."""
        return 1 if seconds <= self.seconds else math.ceil((seconds - 2 * self.context) / self.hop)

    def kept(self, values: np.ndarray, number: int, count: int, rate_hz: float) -> np.ndarray:
        """What counts of window `number`'s values, which come at `rate_hz`."""
        first = round(self.context * rate_hz) if number else 0
        last = len(values) if number == count - 1 else round((self.seconds - self.context) * rate_hz)
        return values[first:last]


def windows(config: CodecConfig, seconds: int = WINDOW_SECONDS, context: int = CONTEXT_SECONDS) -> Windows:
    """Windows that begin where a token does, and for a causal codec a chunk of its attention.

    Args:
        seconds, context: at least, and context at least one; rounded up to what the codec's grid allows.

    Raises:
        ConfigError: nothing of a window would be kept, or there is no context.
    """
    frames = math.prod(config.compressor.factors)
    if config.encoder.causal:
        frames = math.lcm(frames, config.encoder.chunk_frames)
    samples = config.encoder.samples_per_frame * frames
    grid = samples // math.gcd(samples, SAMPLE_RATE_HZ)
    found = Windows(*(math.ceil(value / grid) * grid for value in (seconds, context)))
    if found.context < 1:
        raise ConfigError("windows need a second of context or more: their last frames look beyond their end")
    if found.hop <= 0:
        raise ConfigError(f"of a window of {seconds} s with {context} s of context at each end nothing is left")
    return found
