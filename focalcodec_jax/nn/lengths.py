"""Conversions between numbers of samples, frames and tokens, for Python integers and for integer arrays."""

import math
from typing import TypeVar

import jax
import numpy as np

from focalcodec_jax.config import CodecConfig, EncoderConfig

N = TypeVar("N", int, np.ndarray, jax.Array)


def bucket_length(length: int, quantum: int, growth: float = 1.25) -> int:
    """Length to pad to, so that a few compiled programs serve all lengths.

    Buckets are multiples of `quantum`. The smallest has 16 quanta, and each one is `growth` times as long as the
    previous one, rounded up.
    """
    quanta = 16
    while quanta * quantum < length:
        quanta = math.ceil(quanta * growth)
    return quanta * quantum


def at_least_one(n: N) -> N:
    """The maximum of `n` and 1, elementwise."""
    return n.clip(1) if isinstance(n, np.ndarray | jax.Array) else max(n, 1)


def conv_frames(n: N, kernel_size: int, stride: int, causal: bool) -> N:
    """Output frames of one layer of the feature extractor."""
    return (n + stride - 1) // stride if causal else at_least_one((n - kernel_size) // stride + 1)


def encoder_frames(config: EncoderConfig, samples: N) -> N:
    """Output frames of the feature extractor."""
    for kernel_size, stride in zip(config.kernel_sizes, config.strides, strict=True):
        samples = conv_frames(samples, kernel_size, stride, config.causal)
    return samples


def downscaled(n: N, factor: int, causal: bool) -> N:
    """Number of frames after downscaling by `factor`."""
    if causal:
        return (n + factor - 1) // factor
    # parity: the original pads with (n − factor) mod factor zeros, which can drop the last frames if factor > 2
    return at_least_one((n + (n - factor) % factor) // factor)


def samples_to_frames(config: CodecConfig, samples: N) -> N:
    """Number of feature frames of `samples` audio samples at 16 kHz. A single sample gives one frame."""
    return encoder_frames(config.encoder, samples)


def frames_to_tokens(config: CodecConfig, frames: N) -> N:
    """Number of tokens of `frames` feature frames."""
    for factor in config.compressor.factors:
        frames = downscaled(frames, factor, config.compressor.causal)
    return frames


def tokens_to_frames(config: CodecConfig, tokens: N) -> N:
    """Number of feature frames rebuilt from `tokens` tokens.

    In the published models, this is at least the number of encoded frames.
    """
    for factor in config.decompressor.factors:
        tokens = tokens * factor
    return tokens


def frames_to_samples(config: CodecConfig, frames: N) -> N:
    """Number of audio samples decoded from `frames` feature frames, at the output rate."""
    return frames * config.decoder.hop_length


def samples_to_tokens(config: CodecConfig, samples: N) -> N:
    """Number of tokens of `samples` audio samples at 16 kHz."""
    return frames_to_tokens(config, samples_to_frames(config, samples))


def tokens_to_samples(config: CodecConfig, tokens: N) -> N:
    """Number of audio samples decoded from `tokens` tokens, at the output rate."""
    return frames_to_samples(config, tokens_to_frames(config, tokens))


def samples_in_to_out(config: CodecConfig, samples: N) -> N:
    """Number of samples at the output rate that last as long as `samples` at 16 kHz, rounded up."""
    hop_in = config.encoder.samples_per_frame
    return (samples * config.decoder.hop_length + hop_in - 1) // hop_in
