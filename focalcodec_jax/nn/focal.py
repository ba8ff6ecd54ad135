"""Compressor and decompressor, built from focal modulation (Yang et al., 2022) over time.

Depthwise convolutions of increasing width gather context. The last level covers the whole utterance in offline models,
and a long window of the past in causal models. Gates control how much each level modulates the query.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from focalcodec_jax.config import CompressorConfig, DecompressorConfig, FocalConfig
from focalcodec_jax.nn import bsq
from focalcodec_jax.nn.layers import (
    Conv,
    Dtype,
    DynamicTanh,
    FeedForward,
    Layer,
    Lengths,
    Snake,
    gelu,
    layer_norm,
    linear,
    pad_for_kernel,
    pad_frames,
    precision,
    repeat_first,
    zero_padding,
)
from focalcodec_jax.nn.lengths import downscaled


def norm(config: FocalConfig, dtype: Dtype, name: str) -> Layer:
    """Normalization of a focal block: LayerNorm, or DynamicTanh in causal models."""
    return DynamicTanh(config.tanhscale_init, name=name) if config.causal else layer_norm(dtype, name)


def time_mean(x: Float[Array, "batch frames dim"], lengths: Lengths) -> Float[Array, "batch 1 dim"]:
    """Mean over each item's real frames, accumulated in float32."""
    total = zero_padding(x, lengths).astype(jnp.float32).sum(axis=1, keepdims=True)
    count = x.shape[1] if lengths is None else lengths[:, None, None].astype(jnp.float32)
    return (total / count).astype(x.dtype)


class FocalModulation(nn.Module):
    """Computes query · Σ_l gate_l · context_l.

    Attributes:
        window_size: longest context of a causal model, in frames.
    """

    config: FocalConfig
    window_size: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> Float[Array, "batch frames dim"]:
        config, dim, levels = self.config, x.shape[-1], self.config.focal_level
        mixed = linear(2 * dim + levels + 1, self.dtype, "in_proj")(x)
        query, context, gates = jnp.split(mixed, [dim, 2 * dim], axis=-1)

        modulator = jnp.zeros_like(context)
        for level in range(levels):
            context = self.widen(context, level, config.focal_window + level * config.focal_factor, lengths)
            modulator += gates[..., level : level + 1] * context
        if config.causal:
            context = self.widen(context, levels, self.window_size, lengths)
        else:
            context = gelu(time_mean(context, lengths))
        modulator += gates[..., levels:] * context
        if config.normalize_modulator:
            modulator /= levels + 1

        y = query * linear(dim, self.dtype, "context_proj")(modulator)
        if config.use_post_norm:
            y = norm(config, self.dtype, "norm")(y)
        return linear(dim, self.dtype, "out_proj")(y)

    def widen(self, context: Array, level: int, kernel_size: int, lengths: Lengths) -> Array:
        """Widen the context of each frame by a depthwise convolution."""
        padded = pad_for_kernel(context, kernel_size, self.config.causal, lengths)
        dim = context.shape[-1]
        return gelu(Conv(dim, kernel_size, groups=dim, dtype=self.dtype, name=f"layers_{level}")(padded))


class FocalBlock(nn.Module):
    """A transformer layer with focal modulation in place of attention."""

    config: FocalConfig
    window_size: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> Float[Array, "batch frames dim"]:
        modulation = FocalModulation(self.config, self.window_size, self.dtype, name="modulation")
        feed_forward = FeedForward(4 * x.shape[-1], self.dtype, name="feed_forward")
        x = self.residual("modulation", x, lambda y: modulation(y, lengths))
        return self.residual("feed_forward", x, feed_forward)

    def residual(self, name: str, x: Array, branch: Layer) -> Array:
        """Add a branch to its input. The norm is applied after the branch if `use_post_norm` is set, else before it."""
        normalize = norm(self.config, self.dtype, f"{name}_norm")
        y = normalize(branch(x)) if self.config.use_post_norm else branch(normalize(x))
        if self.config.use_layerscale:
            init = nn.initializers.constant(self.config.layerscale_init)
            y = y * self.param(f"{name}_gamma", init, (x.shape[-1],), jnp.float32)[None, None].astype(y.dtype)
        return x + y


class DownScale(nn.Module):
    """A strided convolution that merges `factor` frames into one, followed by Snake."""

    features: int
    factor: int
    causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> Float[Array, "batch frames_out out"]:
        if self.causal:
            x = repeat_first(x, self.factor - 1)
        else:
            missing = downscaled(x.shape[1], self.factor, causal=False) * self.factor - x.shape[1]
            x = pad_frames(zero_padding(x, lengths), 0, max(0, missing))
        conv = Conv(self.features, self.factor, stride=self.factor, dtype=self.dtype, name="downscale")
        return Snake(name="activation")(conv(x))


class UpScale(nn.Module):
    """Snake, followed by a transposed convolution that turns each frame into `factor` frames."""

    features: int
    factor: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames_out out"]:
        return TransposedConv(self.features, self.factor, self.dtype, name="upscale")(Snake(name="activation")(x))


class TransposedConv(nn.Module):
    """Transposed convolution whose kernel size equals its stride `factor`, computed as a matrix product."""

    features: int
    factor: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames_out out"]:
        batch, frames, dim = x.shape
        init = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        kernel = self.param("kernel", init, (self.factor, dim, self.features), jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(self.dtype)
        y = jnp.einsum("btd,kdf->btkf", x.astype(self.dtype), kernel, precision=precision(self.dtype))
        return y.reshape(batch, frames * self.factor, self.features) + bias[None, None]


class DownStage(nn.Module):
    """DownScale → FocalBlock."""

    config: CompressorConfig
    index: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> tuple[Array, Lengths]:
        config, factor = self.config, self.config.factors[self.index]
        features = config.hidden_dims[self.index]
        x = DownScale(features, factor, config.causal, self.dtype, name="downscale")(x, lengths)
        if lengths is not None:
            lengths = downscaled(lengths, factor, config.causal)
        return FocalBlock(config, config.window_size, self.dtype, name="focal_block")(x, lengths), lengths


class Compressor(nn.Module):
    """Features to latents on the unit sphere, one latent vector per token."""

    config: CompressorConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self, feats: Float[Array, "batch frames dim"], lengths: Lengths = None
    ) -> Float[Array, "batch tokens bits"]:
        x = feats.astype(self.dtype)
        for index in range(len(self.config.factors)):
            x, lengths = DownStage(self.config, index, self.dtype, name=f"layers_{index}")(x, lengths)
        return bsq.normalize(linear(self.config.output_dim, self.dtype, "out_proj")(x))


class UpStage(nn.Module):
    """FocalBlock → UpScale."""

    config: DecompressorConfig
    index: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> tuple[Array, Lengths]:
        config, factor = self.config, self.config.factors[self.index]
        last = self.index == len(config.factors) - 1
        window_size = config.last_window_size if last else config.window_size
        x = FocalBlock(config, window_size, self.dtype, name="focal_block")(x, lengths)
        features = config.output_dim if last else config.hidden_dims[self.index + 1]
        x = UpScale(features, factor, self.dtype, name="upscale")(x)
        return x, None if lengths is None else lengths * factor


class Refiner(nn.Module):
    """Residual feed-forward layer over whole chunks, so that each frame depends on all frames of its chunk."""

    chunk_frames: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> Float[Array, "batch frames dim"]:
        batch, frames, dim = x.shape
        padded = pad_frames(zero_padding(x, lengths), 0, -frames % self.chunk_frames)
        chunks = padded.reshape(batch, -1, self.chunk_frames * dim)
        hidden = gelu(linear(chunks.shape[-1], self.dtype, "in_proj")(chunks))
        refined = linear(chunks.shape[-1], self.dtype, "out_proj")(hidden)
        return x + refined.reshape(padded.shape)[:, :frames]


class Decompressor(nn.Module):
    """Codes to features. Causal models with a lookahead end in the refiner."""

    config: DecompressorConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self, codes: Float[Array, "batch tokens bits"], lengths: Lengths = None
    ) -> Float[Array, "batch frames dim"]:
        config = self.config
        x = linear(config.hidden_dims[0], self.dtype, "in_proj")(codes)
        for index in range(len(config.factors)):
            x, lengths = UpStage(config, index, self.dtype, name=f"layers_{index}")(x, lengths)
        if config.causal and config.lookahead_size > 0:
            x = Refiner(1 + config.lookahead_size, self.dtype, name="refiner")(x, lengths)
        return x
