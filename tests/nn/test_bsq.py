"""Conversions between latents, codes and tokens, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focalcodec_jax.nn import bsq


@pytest.mark.parametrize("code_dim", [1, 8, 11, 12, 13, 16])
def test_the_whole_codebook_both_ways(code_dim: int):
    toks = jnp.arange(2**code_dim)
    codes = bsq.toks_to_codes(toks, code_dim)
    np.testing.assert_array_equal(bsq.codes_to_toks(codes), toks)
    np.testing.assert_array_equal(bsq.lats_to_toks(codes), toks)
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1, rtol=1e-6)


def test_most_significant_bit_first_and_zero_is_zero():
    lats = jnp.array([[0.9, -0.1, 0.0], [-0.3, 0.0, 0.7], [0.0, 0.0, -0.0]])
    np.testing.assert_array_equal(bsq.lats_to_toks(lats), [4, 1, 0])


def test_quantize_is_exact_with_the_identity_as_gradient():
    rng = np.random.default_rng(0)
    lats = bsq.normalize(jnp.asarray(rng.normal(size=(5, 7, 13)), jnp.float32))
    weights = jnp.asarray(rng.normal(size=lats.shape), jnp.float32)
    codes, toks = bsq.quantize(lats)
    np.testing.assert_array_equal(codes, bsq.lats_to_codes(lats))
    np.testing.assert_array_equal(toks, bsq.lats_to_toks(lats))
    np.testing.assert_array_equal(jax.grad(lambda x: (weights * bsq.quantize(x)[0]).sum())(lats), weights)


def test_normalize_at_zero_is_finite():
    zero = jnp.zeros((1, 13))
    assert not bsq.normalize(zero).any()
    assert jnp.isfinite(jax.jacobian(bsq.normalize)(zero)).all()
