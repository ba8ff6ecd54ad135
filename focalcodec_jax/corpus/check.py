"""Check the tokens of a run by encoding a random sample of recordings again, one by one in float32."""

import random
from dataclasses import dataclass, replace

import numpy as np

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.inference import Codec
from focalcodec_jax.nn.codec import FocalCodec

LONGEST_SECONDS = 30.0
"""Longer recordings are not sampled."""


@dataclass(frozen=True)
class CheckResult:
    """Number of tokens that differ between batches and single recordings.

    Attributes:
        differing: number of tokens that differ.
        tokens: number of tokens that were compared.
        recordings: number of recordings that were compared.
    """

    differing: int
    tokens: int
    recordings: int

    @property
    def miss_rate(self) -> float:
        """Share of the tokens that differ."""
        return self.differing / max(1, self.tokens)


class CheckSample:
    """A uniform random sample of the recordings that were offered so far.

    Args:
        size: number of recordings in the sample.
    """

    def __init__(self, size: int):
        self.size, self.offered = size, 0
        self.random = random.Random(0)
        self.signals: dict[int, np.ndarray] = {}
        self.tokens: dict[int, np.ndarray] = {}

    def offer(self, index: int, sig: np.ndarray) -> None:
        """Offer a (samples,) recording. It is added with the probability that keeps the sample uniform."""
        if not self.size or len(sig) > LONGEST_SECONDS * SAMPLE_RATE_HZ:
            return
        self.offered += 1
        if len(self.signals) == self.size:
            if self.random.random() > self.size / self.offered:
                return
            dropped = self.random.choice(list(self.signals))
            del self.signals[dropped]
            self.tokens.pop(dropped, None)
        self.signals[index] = sig

    def add_tokens(self, index: int, toks: np.ndarray) -> None:
        """Store the (tokens,) tokens of a recording, if it is in the sample."""
        if index in self.signals:
            self.tokens[index] = toks

    def encode_again(self, codec: Codec) -> CheckResult | None:
        """Encode the sample one by one in float32 and compare the tokens. Returns None if the sample is empty."""
        if not self.signals:
            return None
        if codec.config.dtype != "float32":
            exact = FocalCodec(replace(codec.config, dtype="float32"))
            codec = Codec(exact, codec.variables, list(codec.batch_sharding.device_set))
        pairs = [(codec.encode(self.signals[index], SAMPLE_RATE_HZ)[0], toks) for index, toks in self.tokens.items()]
        differing = sum(int((again != toks).sum()) for again, toks in pairs)
        return CheckResult(differing, sum(len(toks) for _, toks in pairs), len(pairs))
