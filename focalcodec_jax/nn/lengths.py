"""How many frames, tokens and samples a length becomes. Works on ints and on integer arrays alike."""

from typing import TypeVar

import jax
import numpy as np

from focalcodec_jax.config import CodecConfig, EncoderConfig

N = TypeVar("N", int, np.ndarray, jax.Array)


def at_least_one(n: N) -> N:
    return n + (n < 1) * (1 - n)


def conv_frames(n: N, kernel_size: int, stride: int, causal: bool) -> N:
    """Frames out of one layer of the feature extractor."""
    return (n + stride - 1) // stride if causal else at_least_one((n - kernel_size) // stride + 1)


def encoder_frames(config: EncoderConfig, samples: N) -> N:
    """Frames out of the whole feature extractor."""
    for kernel_size, stride in zip(config.kernel_sizes, config.strides, strict=True):
        samples = conv_frames(samples, kernel_size, stride, config.causal)
    return samples


def downscaled(n: N, factor: int, causal: bool) -> N:
    """Frames after a downscaling by `factor`."""
    if causal:
        return (n + factor - 1) // factor
    # parity: the original pads by (n − factor) mod factor zeros, which for factors above two drops a tail
    return at_least_one((n + (n - factor) % factor) // factor)


def samples_to_frames(config: CodecConfig, samples: N) -> N:
    """Feature frames of `samples` audio samples at 16 kHz; an input of a single sample gives one frame."""
    return encoder_frames(config.encoder, samples)


def frames_to_tokens(config: CodecConfig, frames: N) -> N:
    """Tokens of `frames` feature frames."""
    for factor in config.compressor.factors:
        frames = downscaled(frames, factor, config.compressor.causal)
    return frames


def tokens_to_frames(config: CodecConfig, tokens: N) -> N:
    """Feature frames rebuilt from `tokens` tokens; at least as many as went in."""
    for factor in config.decompressor.factors:
        tokens = tokens * factor
    return tokens


def frames_to_samples(config: CodecConfig, frames: N) -> N:
    """Audio samples, at the output rate, decoded from `frames` feature frames."""
    return frames * config.decoder.hop_length


def samples_to_tokens(config: CodecConfig, samples: N) -> N:
    return frames_to_tokens(config, samples_to_frames(config, samples))


def tokens_to_samples(config: CodecConfig, tokens: N) -> N:
    return frames_to_samples(config, tokens_to_frames(config, tokens))


def samples_in_to_out(config: CodecConfig, samples: N) -> N:
    """Samples at the output rate that last as long as `samples` at 16 kHz, rounded up."""
    hop_in = config.encoder.samples_per_frame
    return (samples * config.decoder.hop_length + hop_in - 1) // hop_in
