"""Binary spherical quantization (Zhao et al., 2024): the sign of each latent is one bit of the token.

Pure functions. The most significant bit comes first; a latent of exactly zero counts as 0. Tokens are computed in
integer arithmetic only, because bfloat16 cannot hold every integer above 256.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from focalcodec_jax.nn.layers import frame_mask


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


# --- training --------------------------------------------------------------------------------------------------


def entropy_loss(
    lats: Float[Array, "batch tokens bits"],
    lengths: Int[Array, " batch"] | None = None,
    *,
    inv_temperature: float = 100.0,
    diversity: float = 1.0,
) -> Float[Array, ""]:
    """Entropy of each frame's soft assignment − `diversity` · entropy of the average assignment, in nats.

    Low where every frame is sure of its code and the codes are used alike. Averages are over all real frames given;
    under `jax.jit` with sharded arrays that is the global batch.

    Args:
        lats: latents on the unit sphere, (batch, tokens, K).
        lengths: real tokens of each item; the rest counts for nothing. The loss of no token at all is 0.
        inv_temperature: τ; a code c gets a probability proportional to exp(2τ · lats · c).
        diversity: γ.

    Source: Zhao et al., "Image and Video Tokenization with Binary Spherical Quantization" (2024), section 3.3.
    """
    per_frame, codebook = entropies(lats, lengths, inv_temperature=inv_temperature)
    return per_frame - diversity * codebook


def entropies(
    lats: Float[Array, "batch tokens bits"],
    lengths: Int[Array, " batch"] | None = None,
    *,
    inv_temperature: float = 100.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean entropy of the frames' soft assignments, and the entropy of their mean, in nats; arguments as above.

    The assignment factorises over bits, so that a frame's entropy is a sum of binary entropies, and the mean over
    the 2^K codes is one product of two tables of half the bits each: memory grows with 2^(K/2), not 2^K, per frame.
    """
    bits = lats.shape[-1]
    logits = 4 * inv_temperature / np.sqrt(bits) * lats.astype(jnp.float32).reshape(-1, bits)
    real = jnp.ones(len(logits)) if lengths is None else frame_mask(lengths, lats.shape[1]).reshape(-1)
    count = jnp.maximum(real.sum(), 1)

    # What lies past an item's end may be anything, NaN included, in value and in gradient.
    logits = jnp.where(real[:, None] > 0, logits, 0)
    sure = jnp.abs(logits)
    binary = jnp.log1p(jnp.exp(-sure)) + sure * jax.nn.sigmoid(-sure)
    per_frame = (binary.sum(axis=-1) * real).sum() / count

    first = _half_codebook(logits[:, : bits // 2])
    second = _half_codebook(logits[:, bits // 2 :])
    mean = jnp.einsum("nf,ns->fs", first * (real / count)[:, None], second, precision=jax.lax.Precision.HIGHEST)
    # parity: the original clamps inside the logarithm
    codebook = -(mean * jnp.log(jnp.maximum(mean, 1e-5))).sum()
    return per_frame, codebook


def _half_codebook(logits: Float[Array, "frames bits"]) -> Float[Array, "frames codes"]:
    """Probability of every setting of these bits."""
    table = jnp.ones((len(logits), 1))
    for logit in logits.T:
        one = jax.nn.sigmoid(logit)[:, None]
        zero = jax.nn.sigmoid(-logit)[:, None]
        table = jnp.stack([table * zero, table * one], axis=-1).reshape(len(logits), -1)
    return table
