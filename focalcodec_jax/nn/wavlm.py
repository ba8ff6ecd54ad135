"""WavLM encoder (Chen et al., 2022): audio to features.

The published models use the first six layers of WavLM-large. The causal variant (FocalCodec-Stream) pads on the left
only, and attends in chunks of `1 + lookahead_size` frames.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from focalcodec_jax.config import EncoderConfig
from focalcodec_jax.nn.layers import (
    Conv,
    Dtype,
    FeedForward,
    Lengths,
    frame_mask,
    gelu,
    layer_norm,
    linear,
    pad_frames,
    precision,
    repeat_first,
    zero_padding,
)
from focalcodec_jax.nn.lengths import conv_frames, encoder_frames


class ConvLayer(nn.Module):
    """One layer of the feature extractor: convolution → LayerNorm → GELU."""

    config: EncoderConfig
    index: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch steps dim"], lengths: Lengths) -> Float[Array, "batch steps_out dim_out"]:
        dim, kernel_size, stride = (
            values[self.index] for values in (self.config.hidden_dims, self.config.kernel_sizes, self.config.strides)
        )
        if self.config.causal:
            x = repeat_first(x, kernel_size - 1)
        else:
            # Inputs shorter than the kernel are padded with zeros (parity: before each layer).
            x = pad_frames(zero_padding(x, lengths), 0, max(0, kernel_size - x.shape[1]))
        x = Conv(dim, kernel_size, stride=stride, use_bias=False, dtype=self.dtype, name="conv")(x)
        return gelu(layer_norm(self.dtype, "norm")(x))


class FeatureExtractor(nn.Module):
    """Strided convolutions from audio to frames. In the published models, the strides multiply to 320 samples."""

    config: EncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, sig: Float[Array, "batch samples"], lengths: Lengths) -> Float[Array, "batch frames dim"]:
        x = sig[..., None].astype(self.dtype)
        for index, (kernel_size, stride) in enumerate(zip(self.config.kernel_sizes, self.config.strides, strict=True)):
            x = ConvLayer(self.config, index, self.dtype, name=f"layers_{index}")(x, lengths)
            if lengths is not None:
                lengths = conv_frames(lengths, kernel_size, stride, self.config.causal)
        return x


class PositionalEmbedding(nn.Module):
    """Positional embedding, computed by a wide grouped convolution."""

    config: EncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> Float[Array, "batch frames dim"]:
        size, frames = self.config.conv_pos, x.shape[1]
        if self.config.causal:
            x = repeat_first(x, size - 1)
        else:  # the kernel is centred on tap size // 2; the slice drops the extra frame of an even kernel
            x = pad_frames(zero_padding(x, lengths), size // 2, size // 2)[:, : frames + size - 1]
        conv = Conv(self.config.dim, size, groups=self.config.conv_pos_groups, dtype=self.dtype, name="conv")
        return gelu(conv(x))


def relative_position_bucket(relative: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each relative position (key − query).

    Half of the buckets serve each direction. Each near distance has its own bucket. Far distances are binned
    logarithmically, up to `max_distance`.

    Args:
        relative: integer array of relative positions, of any shape.

    Returns:
        Bucket indices in the shape of `relative`.
    """
    half = num_buckets // 2
    near = half // 2
    distance = np.abs(relative)
    far = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(near)) / np.float32(
        math.log(max_distance / near)
    )
    far = np.minimum(near + (far * np.float32(half - near)).astype(np.int32), half - 1)
    return np.where(relative > 0, half, 0) + np.where(distance < near, distance, far)


class RelativeBias(nn.Module):
    """Attention bias by relative position. All layers share one table."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, frames: int) -> Float[Array, "heads frames frames"]:
        shape = (self.config.num_buckets, self.config.num_heads)
        table = self.param("embedding", nn.initializers.normal(0.02), shape, jnp.float32)
        # Computed in NumPy, because devices round log differently. All distances above `far` share one bucket.
        far = self.config.max_distance
        buckets = relative_position_bucket(np.arange(-far, far + 1), self.config.num_buckets, far)
        relative = jnp.clip(jnp.arange(-frames + 1, frames), -far, far)  # jnp, because `frames` may be symbolic
        by_distance = table[jnp.asarray(buckets)[relative + far]]
        return toeplitz(by_distance.T, frames)


def toeplitz(by_distance: Float[Array, "heads distances"], frames: int) -> Float[Array, "heads frames frames"]:
    """Arrange values for the distances −(frames−1) … frames−1 in a (query, key) matrix, without a gather.

    Repeating a row of 2·frames values and reshaping to rows of 2·frames−1 values shifts each row by one.
    """
    padded = jnp.pad(by_distance, ((0, 0), (0, 1)))
    flat = jnp.tile(padded, (1, frames))[:, : frames * (2 * frames - 1)]
    return flat.reshape(-1, frames, 2 * frames - 1)[:, :, frames - 1 :]


def chunk_mask(config: EncoderConfig, frames: int, lengths: Lengths) -> Bool[Array, "batch 1 frames frames"]:
    """Mask of a causal model, True where a query attends to a key.

    Each query attends to the last `window_size` keys before the end of its chunk.
    """
    query, key = jnp.arange(frames)[None, :, None], jnp.arange(frames)[None, None]
    end = (query // config.chunk_frames + 1) * config.chunk_frames
    last = jnp.full((1,), frames) if lengths is None else lengths
    end = jnp.minimum(end, last[:, None, None])
    return ((key < end) & (key >= end - config.window_size))[:, None]


class Attention(nn.Module):
    """Self-attention with gated relative position bias."""

    config: EncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch frames dim"],
        bias: Float[Array, "heads frames frames"],
        mask: Bool[Array, "batch_or_1 1 queries_or_1 frames"] | None,
    ) -> Float[Array, "batch frames dim"]:
        batch, frames, dim = x.shape
        heads = self.config.num_heads
        split = (batch, frames, heads, dim // heads)
        q, k, v = (  # heads come before frames, so that the two products below need no copy of the scores
            part.reshape(split).transpose(0, 2, 1, 3)
            for part in jnp.split(linear(3 * dim, self.dtype, "qkv_proj")(x), 3, axis=-1)
        )
        scores = jnp.einsum("bhqd,bhkd->bhqk", q / math.sqrt(dim // heads), k, precision=precision(self.dtype))
        scores = scores.astype(jnp.float32) + self.gate(x.reshape(split))[..., None] * bias[None]
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        y = jnp.einsum("bhqk,bhkd->bhqd", weights, v, precision=precision(self.dtype))
        return linear(dim, self.dtype, "out_proj")(y.transpose(0, 2, 1, 3).reshape(batch, frames, dim))

    def gate(self, x: Float[Array, "batch frames heads head_dim"]) -> Float[Array, "batch heads frames"]:
        """Weight of the position bias for each head and query, computed from the query's content."""
        const = self.param("gru_rel_pos_const", nn.initializers.ones_init(), (self.config.num_heads,), jnp.float32)
        a, b = jnp.moveaxis(linear(8, jnp.float32, "gru_rel_pos_linear")(x).reshape(*x.shape[:3], 2, 4).sum(-1), -1, 0)
        a, b = nn.sigmoid(a), nn.sigmoid(b)
        return (a * (b * const[None, None] - 1) + 2).transpose(0, 2, 1)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer."""

    config: EncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], bias: Array, mask: Array | None) -> Array:
        attention = Attention(self.config, self.dtype, name="attention")
        x = x + attention(layer_norm(self.dtype, "attention_norm")(x), bias, mask)
        feed_forward = FeedForward(self.config.ffn_dim, self.dtype, name="feed_forward")
        return x + feed_forward(layer_norm(self.dtype, "feed_forward_norm")(x))


class Transformer(nn.Module):
    """Positional embedding, followed by the transformer layers. There is no final norm."""

    config: EncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> Float[Array, "batch frames dim"]:
        x = x + PositionalEmbedding(self.config, self.dtype, name="positional_embedding")(x, lengths)
        bias = RelativeBias(self.config, name="relative_embedding")(x.shape[1])
        if self.config.causal:
            mask = chunk_mask(self.config, x.shape[1], lengths)
        else:
            mask = None if lengths is None else frame_mask(lengths, x.shape[1])[:, None, None]
        for index in range(self.config.num_layers):
            x = TransformerLayer(self.config, self.dtype, name=f"layers_{index}")(x, bias, mask)
        return x


class WavLM(nn.Module):
    """Audio at 16 kHz to features, about one frame per `config.samples_per_frame` samples."""

    config: EncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, sig: Float[Array, "batch samples"], lengths: Lengths = None) -> Float[Array, "batch frames dim"]:
        x = FeatureExtractor(self.config, self.dtype, name="feature_extractor")(sig, lengths)
        x = linear(self.config.dim, self.dtype, "feature_proj")(layer_norm(self.dtype, "norm")(x))
        if lengths is not None:
            lengths = encoder_frames(self.config, lengths)
        return Transformer(self.config, self.dtype, name="encoder")(x, lengths)
