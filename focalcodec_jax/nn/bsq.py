"""Binary spherical quantization (Zhao et al., 2024): the sign of each latent value is one bit of the token.

All functions are pure. The most significant bit comes first, and a latent value of exactly zero gives the bit 0. Tokens
are computed in integer arithmetic only, because bfloat16 cannot represent every integer above 256.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from focalcodec_jax.nn.layers import Lengths, frame_mask


def _shifts(code_dim: int, ndim: int) -> np.ndarray:
    """Position of each bit within a token, with `ndim` axes: (1, ..., 1, code_dim)."""
    return np.arange(code_dim - 1, -1, -1, dtype=np.int32).reshape((1,) * (ndim - 1) + (code_dim,))


def bits_to_codes(bits: Bool[Array, "*batch bits"]) -> Float[Array, "*batch bits"]:
    """Codes on the unit sphere: each of the K bits becomes +1/√K or −1/√K."""
    scale = np.float32(1 / np.sqrt(bits.shape[-1]))
    return jnp.where(bits, scale, -scale)


def bits_to_toks(bits: Bool[Array, "*batch bits"]) -> Int[Array, "*batch"]:
    """Int32 tokens whose binary digits are the bits."""
    return (bits.astype(jnp.int32) << _shifts(bits.shape[-1], bits.ndim)).sum(axis=-1, dtype=jnp.int32)


def lats_to_codes(lats: Float[Array, "*batch bits"]) -> Float[Array, "*batch bits"]:
    """Codes of latents, without a gradient. `quantize` has a straight-through gradient."""
    return bits_to_codes(lats > 0)


def lats_to_toks(lats: Float[Array, "*batch bits"]) -> Int[Array, "*batch"]:
    """Int32 tokens of latents."""
    return bits_to_toks(lats > 0)


def codes_to_toks(codes: Float[Array, "*batch bits"]) -> Int[Array, "*batch"]:
    """Int32 tokens of codes."""
    return bits_to_toks(codes > 0)


def toks_to_codes(toks: Int[Array, "*batch"], code_dim: int) -> Float[Array, "*batch bits"]:
    """Codes of tokens. `code_dim` is the number of bits per token."""
    return bits_to_codes((toks[..., None] >> _shifts(code_dim, toks.ndim + 1)) & 1 > 0)


def quantize(lats: Float[Array, "*batch bits"]) -> tuple[Float[Array, "*batch bits"], Int[Array, "*batch"]]:
    """Quantize latents on the unit sphere, with a straight-through gradient.

    Args:
        lats: (..., K) latents, each of norm one.

    Returns:
        codes: (..., K), every value exactly ±1/√K. Their gradient with respect to `lats` is the identity.
        toks: (...) int32.
    """
    bits = lats > 0
    through = lats - jax.lax.stop_gradient(lats)  # its value is zero, so the codes stay exact
    return bits_to_codes(bits) + through, bits_to_toks(bits)


def normalize(x: Float[Array, "*batch bits"]) -> Float[Array, "*batch bits"]:
    """Project onto the unit sphere, in float32."""
    x = x.astype(jnp.float32)
    # The floor is applied before the root, so that the gradient at zero is finite.
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(axis=-1, keepdims=True), 1e-24))


# --- training --------------------------------------------------------------------------------------------------


def entropy_loss(
    lats: Float[Array, "batch tokens bits"],
    lengths: Lengths = None,
    *,
    inv_temperature: float = 100.0,
    diversity: float = 1.0,
) -> Float[Array, ""]:
    """Entropy loss: mean entropy of the soft assignments − `diversity` · entropy of the mean assignment, in nats.

    The loss is low when each latent is assigned to one code with confidence and all codes are used equally often.
    Averages are over all real tokens. Under `jax.jit` with sharded arrays, these are the tokens of the global batch.

    Args:
        lats: (batch, tokens, K) latents on the unit sphere.
        lengths: number of real tokens of each item. The default is all tokens. A batch without real tokens has loss 0.
        inv_temperature: inverse temperature τ. The probability of a code c is proportional to exp(2τ · lats · c).
        diversity: weight γ of the entropy of the mean assignment.

    Source: Zhao et al., "Image and Video Tokenization with Binary Spherical Quantization" (2024), section 3.3.
    """
    per_frame, codebook = entropies(lats, lengths, inv_temperature=inv_temperature)
    return per_frame - diversity * codebook


def entropies(
    lats: Float[Array, "batch tokens bits"],
    lengths: Lengths = None,
    *,
    inv_temperature: float = 100.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The two terms of `entropy_loss`. The arguments are the same as there.

    The assignment factorizes over bits. The entropy of one assignment is therefore a sum of binary entropies, and the
    mean over all 2^K codes is a product of two tables over half the bits. Memory per token grows with 2^(K/2), not 2^K.

    Returns:
        Mean entropy of the soft assignments, and entropy of the mean assignment, both scalars in nats.
    """
    bits = lats.shape[-1]
    logits = 4 * inv_temperature / math.sqrt(bits) * lats.astype(jnp.float32).reshape(-1, bits)
    if lengths is None:
        real = jnp.ones(len(logits))
    else:
        real = frame_mask(lengths, lats.shape[1]).reshape(-1).astype(jnp.float32)
    count = jnp.maximum(real.sum(), 1)

    # Padding may hold NaN, which must reach neither the value nor the gradient.
    logits = jnp.where(real[:, None] > 0, logits, 0)
    size = jnp.abs(logits)
    binary = jnp.log1p(jnp.exp(-size)) + size * jax.nn.sigmoid(-size)
    per_frame = (binary.sum(axis=-1) * real).sum() / count

    first = _half_codebook(logits[:, : bits // 2])
    second = _half_codebook(logits[:, bits // 2 :])
    mean = jnp.einsum("nf,ns->fs", first * (real / count)[:, None], second, precision=jax.lax.Precision.HIGHEST)
    # parity: the original clamps inside the logarithm
    codebook = -(mean * jnp.log(jnp.maximum(mean, 1e-5))).sum()
    return per_frame, codebook


def _half_codebook(logits: Float[Array, "tokens bits"]) -> Float[Array, "tokens codes"]:
    """Probability of every combination of these bits."""
    table = jnp.ones((len(logits), 1))
    for logit in logits.T:
        one = jax.nn.sigmoid(logit)[:, None]
        zero = jax.nn.sigmoid(-logit)[:, None]
        table = jnp.stack([table * zero, table * one], axis=-1).reshape(len(logits), -1)
    return table
