"""Fast forms of layers equal the reference forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from focalcodec_jax.config import PRESETS
from focalcodec_jax.nn import layers, wavlm


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@partial(jax.jit, static_argnums=(0, 3, 4))
@partial(jax.value_and_grad, argnums=(1, 2), has_aux=True)
def weighted(conv, x, kernel, stride: int, groups: int):
    """A sum with a different weight for each output, the outputs, and the gradients."""
    y = conv(x, kernel, stride, groups)
    return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y


@pytest.mark.parametrize(
    ("taps", "dim_in", "dim_out", "stride", "groups"),
    [
        (7, 24, 24, 1, 24),
        (14, 8, 8, 1, 8),
        (33, 8, 8, 1, 8),
        (100, 8, 8, 1, 8),
        (512, 4, 4, 1, 4),
        (128, 32, 32, 1, 4),
        (16, 32, 32, 1, 16),
        (10, 1, 16, 5, 1),
        (3, 16, 16, 2, 1),
        (2, 16, 16, 2, 1),
        (4, 16, 8, 4, 1),
        (1, 16, 8, 1, 1),
        (7, 16, 24, 1, 1),
    ],
)
def test_convolutions_equal_the_plain_one(taps: int, dim_in: int, dim_out: int, stride: int, groups: int):
    for frames in (taps, taps + 1, taps + 37):
        x, kernel = random(2, frames, dim_in), random(taps, dim_in // groups, dim_out, seed=1)

        (_, fast), fast_gradients = weighted(layers.conv, x, kernel, stride, groups)
        (_, plain), plain_gradients = weighted(layers.plain_conv, x, kernel, stride, groups)
        scale = float(jnp.abs(plain).max())
        np.testing.assert_allclose(fast, plain, atol=2e-6 * scale)
        for a, b in zip(fast_gradients, plain_gradients, strict=True):
            np.testing.assert_allclose(a, b, atol=5e-6 * float(jnp.abs(b).max()))


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 10_001)
    exact = x * 0.5 * scipy.special.erfc(-x / np.sqrt(2))
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x, jnp.float32)), exact, atol=1e-6)


def test_float32_asks_for_the_highest_precision():
    """The default precision rounds to bfloat16 on TPU and to TF32 on recent GPUs."""
    import re

    from focalcodec_jax.pretrained import load_pretrained

    model, variables = load_pretrained("demo")
    for method, x in (("sig_to_toks", jnp.zeros((1, 3200))), ("toks_to_sig", jnp.zeros((1, 10), jnp.int32))):
        program = jax.jit(lambda v, x, m=method: model.apply(v, x, method=m)).lower(variables, x).as_text()
        products = re.findall(r"stablehlo\.(?:dot_general|convolution|dot)[^\n]*", program)
        assert len(products) > 20
        assert all("HIGHEST" in product for product in products), products


@pytest.mark.parametrize("frames", [1, 2, 3, 50, 900])
def test_relative_bias_by_distance(frames: int):
    config = PRESETS["focalcodec_50hz"].encoder
    relative = np.arange(frames)[None] - np.arange(frames)[:, None]
    bucket = wavlm.relative_position_bucket(relative, config.num_buckets, config.max_distance)
    assert bucket.min() >= 0
    assert bucket.max() < config.num_buckets
    table = random(config.num_buckets, 3)
    distances = np.arange(-frames + 1, frames)
    by_distance = table[wavlm.relative_position_bucket(distances, config.num_buckets, config.max_distance)]
    np.testing.assert_array_equal(wavlm.toeplitz(by_distance.T, frames), jnp.moveaxis(table[bucket], -1, 0))


def test_buckets_near_and_far():
    distances = np.array([0, 1, -1, 79, -79, 80, 800, -5000])
    buckets = wavlm.relative_position_bucket(distances, num_buckets=320, max_distance=800)
    np.testing.assert_array_equal(buckets, [0, 161, 1, 239, 79, 240, 319, 159])


def test_chunked_attention_window():
    config = PRESETS["focalcodec_50hz_4k_causal"].encoder
    mask = np.asarray(wavlm.chunk_mask(config, 1000, jnp.array([998])))[0, 0]
    for query, first, last in ((0, 0, 3), (3, 0, 3), (4, 0, 7), (600, 92, 603), (997, 998 - 512, 997)):
        seen = np.flatnonzero(mask[query])
        assert (seen[0], seen[-1], len(seen)) == (first, last, last - first + 1)
