"""Discriminators of HiFi-GAN (Kong et al., 2020): multi-period and multi-scale, weight- or spectral-normalized."""

import math
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from focalcodec_jax.nn.layers import Dtype, grouped_conv, pad_frames, plain_conv

from .sections import DiscriminatorConfig

Kernel = Float[Array, "kernel dim_in_per_group dim_out"]

PERIOD_CHANNELS = (32, 128, 512, 1024, 1024)
PERIOD_STRIDES = (3, 3, 3, 3, 1)
SCALE_CHANNELS = (128, 128, 256, 512, 1024, 1024, 1024)
SCALE_KERNELS = (15, 41, 41, 41, 41, 41, 5)
SCALE_STRIDES = (1, 2, 2, 4, 4, 1, 1)
SCALE_GROUPS = (1, 4, 16, 16, 16, 16, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiscriminatorOutput:
    """Output of one discriminator. The first axis is the batch."""

    scores: Float[Array, " batch *positions"]
    layers: list[Array]
    """Activations of all layers, each (batch, …). The last ones are the scores."""


def weight_norm(kernel: Kernel, scale: Float[Array, " dim_out"]) -> Kernel:
    """Kernel whose norm per output channel is `scale`."""
    return kernel * (scale * lax.rsqrt((kernel**2).sum(axis=(0, 1))))[None, None]


class NormedConv(nn.Module):
    """Convolution with zero 'same' padding and a normalized kernel.

    With weight normalization, the norm per output channel is learned. With spectral normalization, the kernel is
    divided by its largest singular value. Each training step refines this value by one power iteration (collection
    `spectral`).

    Attributes:
        split: whether to compute grouped convolutions as one dense convolution per group.
    """

    dim: int
    kernel_size: int
    stride: int
    groups: int
    spectral: bool
    split: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim_in"]) -> Float[Array, "batch frames_out dim"]:
        shape = (self.kernel_size, x.shape[-1] // self.groups, self.dim)
        bound = 1 / math.sqrt(shape[0] * shape[1])
        kernel = self.param("kernel", _uniform, bound, shape)
        bias = self.param("bias", _uniform, bound, (self.dim,))
        if self.spectral:
            kernel = kernel / self._largest_singular_value(kernel)
        else:
            scale = self.param("scale", lambda _: jnp.sqrt((kernel**2).sum(axis=(0, 1))))
            kernel = weight_norm(kernel, scale)
        pad = (self.kernel_size - 1) // 2
        padded, kernel = pad_frames(x.astype(self.dtype), pad, pad), kernel.astype(self.dtype)
        by_xla, by_group = (
            partial(form, stride=self.stride, groups=self.groups) for form in (plain_conv, grouped_conv)
        )
        if self.groups == 1:
            y = by_xla(padded, kernel)
        elif self.split:
            y = by_group(padded, kernel)
        else:  # On a CPU, XLA's grouped convolution takes 3 to 15 times as long.
            y = lax.platform_dependent(padded, kernel, cpu=by_group, default=by_xla)
        return y + bias[None, None].astype(self.dtype)

    def _largest_singular_value(self, kernel: Kernel) -> Float[Array, ""]:
        matrix = kernel.reshape(-1, self.dim)  # (kernel · dim_in, dim_out)
        left = self.variable("spectral", "u", lambda: _unit(jax.random.normal(self.make_rng("params"), (self.dim,))))
        right = self.variable("spectral", "v", lambda: _unit(lax.stop_gradient(matrix) @ left.value))
        if self.is_mutable_collection("spectral") and not self.is_initializing():
            fixed = lax.stop_gradient(matrix)
            right.value = _unit(jnp.matmul(fixed, left.value, precision=lax.Precision.HIGHEST))
            left.value = _unit(jnp.matmul(right.value, fixed, precision=lax.Precision.HIGHEST))
        return jnp.einsum("i,io,o->", right.value, matrix, left.value, precision=lax.Precision.HIGHEST)


class PeriodDiscriminator(nn.Module):
    """Discriminator of the `period` sequences that consist of every `period`-th sample."""

    config: DiscriminatorConfig
    period: int
    dtype: Dtype

    @nn.compact
    def __call__(self, sig: Float[Array, "batch samples"]) -> DiscriminatorOutput:
        batch, samples = sig.shape
        padded = jnp.pad(sig, ((0, 0), (0, -samples % self.period)), mode="reflect")
        # Kernels extend along one axis only, so the phases become rows of a larger batch.
        x = padded.reshape(batch, -1, self.period).swapaxes(1, 2).reshape(batch * self.period, -1, 1)
        layers = []
        for index, (dim, stride) in enumerate(zip(PERIOD_CHANNELS, PERIOD_STRIDES, strict=True)):
            layer = NormedConv(self.config.channels(dim), 5, stride, 1, False, False, self.dtype, name=f"convs_{index}")
            x = nn.leaky_relu(layer(x), 0.1)
            layers.append(x.reshape(batch, self.period, *x.shape[1:]))
        x = NormedConv(1, 3, 1, 1, False, False, self.dtype, name="output")(x)
        layers.append(x.reshape(batch, self.period, *x.shape[1:]))
        return DiscriminatorOutput(layers[-1].astype(jnp.float32), layers)


class ScaleDiscriminator(nn.Module):
    """Discriminator with strided, grouped convolutions over the signal at one scale."""

    config: DiscriminatorConfig
    spectral: bool
    split: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch samples 1"]) -> DiscriminatorOutput:
        layers = []
        shapes = zip(SCALE_CHANNELS, SCALE_KERNELS, SCALE_STRIDES, SCALE_GROUPS, strict=True)
        for index, (dim, kernel_size, stride, groups) in enumerate(shapes):
            dim = self.config.channels(dim)
            groups = math.gcd(groups, dim, x.shape[-1]) if x.shape[-1] > 1 else 1
            layer = NormedConv(
                dim, kernel_size, stride, groups, self.spectral, self.split, self.dtype, name=f"convs_{index}"
            )
            x = nn.leaky_relu(layer(x), 0.1)
            layers.append(x)
        x = NormedConv(1, 3, 1, 1, self.spectral, False, self.dtype, name="output")(x)
        return DiscriminatorOutput(x.astype(jnp.float32), [*layers, x])


class Discriminators(nn.Module):
    """All discriminators, applied to a batch of signals.

    Attributes:
        split: whether to compute grouped convolutions as one dense convolution per group. This is necessary if the
            batch is replicated along an axis of the mesh (see `layers.grouped_conv`). It takes longer to compile.
    """

    config: DiscriminatorConfig
    dtype: Dtype
    split: bool = False

    @nn.compact
    def __call__(self, sig: Float[Array, "batch samples"]) -> list[DiscriminatorOutput]:
        outputs = [
            PeriodDiscriminator(self.config, period, self.dtype, name=f"period_{period}")(sig)
            for period in self.config.periods
        ]
        x = sig[..., None]
        for scale in range(self.config.num_scales):
            if scale:
                # parity: zeros at the edges count in the average, as in the pooling of the original.
                x = nn.pool(pad_frames(x, 2, 2), 0.0, lax.add, (4,), (2,), "VALID") / 4
            outputs.append(
                ScaleDiscriminator(self.config, scale == 0, self.split, self.dtype, name=f"scale_{scale}")(x)
            )
        return outputs


def _unit(x: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """Vector of norm 1."""
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def _uniform(key: jax.Array, bound: float, shape: tuple[int, ...]) -> Array:
    """PyTorch's default initialization of convolutions."""
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
