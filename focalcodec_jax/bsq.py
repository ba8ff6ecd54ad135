"""Binary spherical quantization (Zhao et al., 2024): the sign of each latent is one bit of the token.

Pure functions. The most significant bit comes first; a latent of exactly zero counts as 0. Tokens are computed in
integer arithmetic only, because bfloat16 cannot hold every integer above 256.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def _shifts(code_dim: int) -> np.ndarray:
    return np.arange(code_dim - 1, -1, -1, dtype=np.int32)


def bits_to_codes(bits: Bool[Array, "*batch bits"]) -> Float[Array, "*batch bits"]:
    """±1/√K, on the unit sphere."""
    scale = np.float32(1 / np.sqrt(bits.shape[-1]))
    return jnp.where(bits, scale, -scale)


def bits_to_toks(bits: Bool[Array, "*batch bits"]) -> Int[Array, "*batch"]:
    return (bits.astype(jnp.int32) << _shifts(bits.shape[-1])).sum(axis=-1, dtype=jnp.int32)


def lats_to_codes(lats: Float[Array, "*batch bits"]) -> Float[Array, "*batch bits"]:
    return bits_to_codes(lats > 0)


def lats_to_toks(lats: Float[Array, "*batch bits"]) -> Int[Array, "*batch"]:
    return bits_to_toks(lats > 0)


def codes_to_toks(codes: Float[Array, "*batch bits"]) -> Int[Array, "*batch"]:
    return bits_to_toks(codes > 0)


def toks_to_codes(toks: Int[Array, "*batch"], code_dim: int) -> Float[Array, "*batch bits"]:
    return bits_to_codes((toks[..., None] >> _shifts(code_dim)) & 1 > 0)


def quantize(lats: Float[Array, "*batch bits"]) -> tuple[Float[Array, "*batch bits"], Int[Array, "*batch"]]:
    """Codes and tokens of latents on the unit sphere, with a straight-through gradient.

    Args:
        lats: latents, (..., K), each of norm one.

    Returns:
        codes (..., K), exactly ±1/√K, whose gradient with respect to `lats` is the identity; toks (...), int32.
    """
    bits = lats > 0
    through = lats - jax.lax.stop_gradient(lats)  # zero in value, so that the codes stay exact
    return bits_to_codes(bits) + through, bits_to_toks(bits)


def normalize(x: Float[Array, "*batch bits"]) -> Float[Array, "*batch bits"]:
    """Project onto the unit sphere, in float32."""
    x = x.astype(jnp.float32)
    # The floor sits inside the root, where it keeps the gradient at zero finite.
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(axis=-1, keepdims=True), 1e-24))
