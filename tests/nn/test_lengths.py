"""Computed lengths equal those of the model's arrays, for integers and for integer arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.golden import Golden

from focalcodec_jax import FocalCodec
from focalcodec_jax.config import PRESETS, CodecConfig
from focalcodec_jax.nn import lengths as count

SAMPLES = (1, 79, 80, 319, 320, 321, 399, 400, 401, 719, 720, 1039, 1040, 16000, 64000)


def lengths_of_arrays(config: CodecConfig, samples: int) -> tuple[int, int, int, int]:
    """Frames, tokens, rebuilt frames and output samples of the traced model."""
    model = FocalCodec(config)

    def shape(method: str, *size: int, dtype: type = jnp.float32) -> int:
        x = jnp.zeros(size, dtype)
        return jax.eval_shape(lambda key: model.init_with_output(key, x, method=method)[0], jax.random.key(0)).shape[1]

    frames = shape("sig_to_feats", 1, samples)
    tokens = shape("feats_to_lats", 1, frames, config.encoder.dim)
    rebuilt = shape("codes_to_qfeats", 1, tokens, config.quantizer.code_dim)
    return frames, tokens, rebuilt, shape("feats_to_sig", 1, rebuilt, config.encoder.dim)


def test_computed_lengths_equal_those_of_arrays(golden: Golden):
    config = golden.model.config
    for samples in SAMPLES[::3]:
        frames, tokens, rebuilt, out = lengths_of_arrays(config, samples)
        assert count.samples_to_frames(config, samples) == frames
        assert count.frames_to_tokens(config, frames) == tokens == count.samples_to_tokens(config, samples)
        assert count.tokens_to_frames(config, tokens) == rebuilt >= frames
        assert count.frames_to_samples(config, rebuilt) == out == count.tokens_to_samples(config, tokens)


@pytest.mark.parametrize("name", PRESETS)
def test_arrays_and_ints_agree(name: str):
    config = PRESETS[name]
    for convert in (count.samples_to_tokens, count.samples_to_frames, count.samples_in_to_out):
        expected = [convert(config, samples) for samples in SAMPLES]
        np.testing.assert_array_equal(convert(config, jnp.array(SAMPLES)), expected)


def test_buckets_grow_by_a_quarter_by_default():
    assert [count.bucket_length(length, 1) for length in (1, 16, 17, 20, 21, 25, 26)] == [16, 16, 20, 20, 25, 25, 32]
    assert [count.bucket_length(length, 320) for length in (1, 5120, 5121)] == [5120, 5120, 6400]
    assert [count.bucket_length(length, 1, 1.5) for length in (16, 17, 25)] == [16, 24, 36]


def test_rates_of_the_published_models():
    rates = {
        name: (c.token_rate_hz, c.bitrate_bps, c.sample_rate_out_hz, c.latency_seconds) for name, c in PRESETS.items()
    }
    assert rates == {
        "focalcodec_50hz": (50, 650, 16000, None),
        "focalcodec_25hz": (25, 325, 16000, None),
        "focalcodec_12_5hz": (12.5, 162.5, 16000, None),
        "focalcodec_50hz_65k_causal": (50, 800, 24000, 0.08),
        "focalcodec_50hz_4k_causal": (50, 600, 24000, 0.08),
        "focalcodec_50hz_2k_causal": (50, 550, 24000, 0.08),
    }


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_downscaling_as_the_original_counts(factor: int):
    """The original pads on the right, and drops the last frames for some factors above two."""
    for frames in range(factor, 30):
        padded = frames + (frames - factor) % factor
        assert count.downscaled(frames, factor, causal=False) == (padded - factor) // factor + 1
        assert count.downscaled(frames, factor, causal=True) == -(-frames // factor)
