"""Decoders from features to audio: a ConvNeXt backbone with one of two heads.

Vocos (Siuzdak, 2023) ends in an inverse STFT. WaveNeXt (Okamoto et al., 2023) ends in a linear layer.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from focalcodec_jax.config import BackboneConfig, VocosConfig, WaveNeXtConfig
from focalcodec_jax.nn.layers import (
    Conv,
    Dtype,
    Lengths,
    gelu,
    layer_norm,
    linear,
    pad_for_kernel,
    pad_frames,
    zero_padding,
)
from focalcodec_jax.nn.spectral import inverse_frames, istft

NORM_EPSILON = 1e-6
MAX_MAGNITUDE = 100.0
"""Predicted magnitudes are clipped to this value."""


def pad(config: BackboneConfig, x: Float[Array, "batch frames dim"], lengths: Lengths) -> Array:
    """Pad so that the convolution keeps the number of frames."""
    if config.causal and isinstance(config, WaveNeXtConfig):
        return pad_frames(x, config.kernel_size - 1, 0)  # parity: only this decoder pads with zeros on the left
    return pad_for_kernel(x, config.kernel_size, config.causal, lengths)


class ConvNeXtBlock(nn.Module):
    """Residual block: depthwise convolution → LayerNorm → Linear → GELU → Linear → layer scale."""

    config: BackboneConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> Float[Array, "batch frames dim"]:
        config = self.config
        conv = Conv(config.dim, config.kernel_size, groups=config.dim, dtype=self.dtype, name="dwconv")
        y = layer_norm(self.dtype, "norm", NORM_EPSILON)(conv(pad(config, x, lengths)))
        y = gelu(linear(config.ffn_dim, self.dtype, "pwconv1")(y))
        y = linear(config.dim, self.dtype, "pwconv2")(y)
        scale = 1 / config.num_layers if config.layerscale_init is None else config.layerscale_init
        gamma = self.param("gamma", nn.initializers.constant(scale), (config.dim,), jnp.float32)
        return x + gamma[None, None].astype(self.dtype) * y


class Backbone(nn.Module):
    """Convolution → LayerNorm → ConvNeXt blocks → LayerNorm."""

    config: BackboneConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self, feats: Float[Array, "batch frames dim_in"], lengths: Lengths
    ) -> Float[Array, "batch frames dim"]:
        config = self.config
        conv = Conv(config.dim, config.kernel_size, dtype=self.dtype, name="embedding")
        x = layer_norm(self.dtype, "input_norm", NORM_EPSILON)(conv(pad(config, feats, lengths)))
        for index in range(config.num_layers):
            x = ConvNeXtBlock(config, self.dtype, name=f"layers_{index}")(x, lengths)
        return layer_norm(self.dtype, "output_norm", NORM_EPSILON)(x)


class FourierHead(nn.Module):
    """Predicts the log-magnitude and phase of each frame, and applies the inverse STFT."""

    config: VocosConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> Float[Array, "batch samples"]:
        config = self.config
        spectrum = linear(config.n_fft + 2, self.dtype, "proj")(x).astype(jnp.float32)
        log_magnitude, phase = jnp.split(spectrum, 2, axis=-1)
        frames = inverse_frames(jnp.minimum(jnp.exp(log_magnitude), MAX_MAGNITUDE), phase)
        if not config.causal:
            return istft(frames, config.hop_length, lengths)
        newest = zero_padding(frames[..., -config.hop_length :], lengths)  # parity: no window and no overlap
        return newest.reshape(x.shape[0], -1)


class LinearHead(nn.Module):
    """Predicts the `hop_length` samples of each frame, clipped to [−1, 1]."""

    config: WaveNeXtConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"], lengths: Lengths) -> Float[Array, "batch samples"]:
        samples = linear(self.config.hop_length, self.dtype, "proj")(x).astype(jnp.float32)
        return jnp.clip(zero_padding(samples, lengths), -1, 1).reshape(x.shape[0], -1)


class Decoder(nn.Module):
    """Features to audio, `hop_length` samples per frame. The output is zero past the end of each item."""

    config: VocosConfig | WaveNeXtConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self, feats: Float[Array, "batch frames dim"], lengths: Lengths = None
    ) -> Float[Array, "batch samples"]:
        x = Backbone(self.config, self.dtype, name="backbone")(feats, lengths)
        if isinstance(self.config, VocosConfig):
            return FourierHead(self.config, self.dtype, name="head")(x, lengths)
        return LinearHead(self.config, self.dtype, name="head")(x, lengths)
