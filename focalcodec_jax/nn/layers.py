"""Layers shared by several parts of the model. All arrays have the layout (batch, frames, dim).

In float32, every matrix product uses `Precision.HIGHEST`. The defaults of JAX are TF32 on recent GPUs and bfloat16 on
TPUs, which change tokens.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

Dtype = DTypeLike
Lengths = Int[Array, " batch"] | None
"""Number of real (unpadded) steps of each item of a batch. None means that no item is padded."""
Layer = Callable[[Array], Array]


def gelu(x: Array) -> Array:
    """Exact GELU, computed with erf as in PyTorch. On CPU it is twice as fast as `jax.nn.gelu`, which uses erfc."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def precision(dtype: Dtype) -> lax.Precision:
    """Precision of matrix products that gives the accuracy of `dtype` on every backend."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


# --- padding ---------------------------------------------------------------------------------------------------


def frame_mask(lengths: Int[Array, " batch"], num_frames: int) -> Bool[Array, "batch frames"]:
    """True on the real frames of each item."""
    return jnp.arange(num_frames)[None] < lengths[:, None]


def zero_padding(x: Float[Array, "batch frames dim"], lengths: Lengths) -> Array:
    """Set the frames past each item's length to zero, so that operations across time ignore their values."""
    if lengths is None:
        return x
    return jnp.where(frame_mask(lengths, x.shape[1])[..., None], x, 0)


def pad_frames(x: Float[Array, "batch frames dim"], left: int, right: int) -> Float[Array, "batch padded dim"]:
    """Add `left` zero frames at the start and `right` zero frames at the end."""
    return jnp.pad(x, ((0, 0), (left, right), (0, 0)))


def pad_same(x: Float[Array, "batch frames dim"], kernel_size: int) -> Float[Array, "batch padded dim"]:
    """Zero padding that keeps the number of frames. Even kernels get one more zero on the right, as in PyTorch."""
    left = (kernel_size - 1) // 2
    return pad_frames(x, left, kernel_size - 1 - left)


def repeat_first(x: Float[Array, "batch frames dim"], left: int) -> Float[Array, "batch padded dim"]:
    """Causal padding: repeat the first frame `left` times before it."""
    return jnp.pad(x, ((0, 0), (left, 0), (0, 0)), mode="edge")


def pad_for_kernel(
    x: Float[Array, "batch frames dim"], kernel_size: int, causal: bool, lengths: Lengths
) -> Float[Array, "batch padded dim"]:
    """Pad so that a convolution keeps the number of frames and does not depend on values past an item's end."""
    if causal:  # the output depends on past frames only, so the padding after an item has no influence
        return repeat_first(x, kernel_size - 1)
    return pad_same(zero_padding(x, lengths), kernel_size)


# --- convolutions without padding, as pure functions; kernels are (kernel_size, dim_in / groups, dim_out) --------


def plain_conv(
    x: Float[Array, "batch frames dim_in"],
    kernel: Float[Array, "kernel dim_in_per_group dim_out"],
    stride: int = 1,
    groups: int = 1,
) -> Float[Array, "batch frames_out dim_out"]:
    """Convolution by XLA. It is the reference for the faster forms below."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
        precision=precision(x.dtype),
    )


def depthwise_conv(
    x: Float[Array, "batch frames dim"], kernel: Float[Array, "kernel 1 dim"]
) -> Float[Array, "batch frames_out dim"]:
    """Convolution with one filter per channel, as a sum of shifted products accumulated in float32.

    On CPU, XLA's grouped convolution with one channel per group is tens of times slower. Long kernels use a loop over
    blocks of `_UNROLL` taps, which keeps the program small.
    """
    taps, frames = kernel.shape[0], x.shape[1] - kernel.shape[0] + 1
    weights = kernel.astype(jnp.float32)

    def add(total, source, block):
        for tap in range(block.shape[0]):
            total = total + source[:, tap : tap + frames].astype(jnp.float32) * block[tap][None]
        return total

    total = jnp.zeros((x.shape[0], frames, x.shape[2]), jnp.float32)
    head = taps % _UNROLL if taps > 4 * _UNROLL else taps
    total = add(total, x, weights[:head])

    def body(step, total):
        start = head + step * _UNROLL
        source = lax.dynamic_slice_in_dim(x, start, frames + _UNROLL - 1, axis=1)
        return add(total, source, lax.dynamic_slice_in_dim(weights, start, _UNROLL))

    if head < taps:
        total = lax.fori_loop(0, (taps - head) // _UNROLL, body, total)
    return total.astype(x.dtype)


_UNROLL = 16
"""Number of taps per step of the loop in `depthwise_conv`."""


def grouped_conv(
    x: Float[Array, "batch frames dim_in"],
    kernel: Float[Array, "kernel dim_in_per_group dim_out"],
    stride: int,
    groups: int,
) -> Float[Array, "batch frames_out dim_out"]:
    """Grouped convolution as `groups` dense convolutions, which XLA runs faster than its grouped form.

    XLA's grouped form is also unsafe under sharding. With jax 0.10.2 the gradient of its kernel is doubled when the
    batch is sharded over one axis of a mesh and replicated over another.
    """
    pairs = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([plain_conv(part, weights, stride) for part, weights in pairs], axis=-1)


def conv(x: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    """Convolution with the fastest implementation for these shapes. The arguments are those of `plain_conv`."""
    if groups == 1:
        return plain_conv(x, kernel, stride)
    if groups == x.shape[-1] == kernel.shape[-1] and stride == 1:
        return depthwise_conv(x, kernel)
    return grouped_conv(x, kernel, stride, groups)


class Conv(nn.Module):
    """Convolution over frames without padding. Callers pad the input."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim_in"]) -> Float[Array, "batch frames_out dim_out"]:
        shape = (self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        y = conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.groups)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            y = y + bias[None, None].astype(self.dtype)
        return y


# --- pointwise -------------------------------------------------------------------------------------------------


def linear(features: int, dtype: Dtype, name: str) -> nn.Dense:
    """Linear layer with the precision of `dtype`."""
    return nn.Dense(features, dtype=dtype, precision=precision(dtype), name=name)


def layer_norm(dtype: Dtype, name: str, epsilon: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm with statistics and scaling in float32. The variance is computed in two passes, as in PyTorch."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


class FeedForward(nn.Module):
    """Linear → GELU → Linear. The output has the width of the input."""

    ffn_dim: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames dim"]:
        hidden = gelu(linear(self.ffn_dim, self.dtype, "in_proj")(x))
        return linear(x.shape[-1], self.dtype, "out_proj")(hidden)


class Snake(nn.Module):
    """Computes x + sin²(αx) / α with one learned α per channel (Ziyin et al., 2020)."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames dim"]:
        alpha = self.param("alpha", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        alpha = alpha[None, None].astype(x.dtype)
        return x + jnp.sin(alpha * x) ** 2 / (alpha + 1e-9)


class DynamicTanh(nn.Module):
    """Computes tanh(αx) with one learned α, a normalization without statistics (Zhu et al., 2025)."""

    init_value: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames dim"]:
        alpha = self.param("alpha", nn.initializers.constant(self.init_value), (1,), jnp.float32)
        return jnp.tanh(alpha[None, None] * x.astype(jnp.float32)).astype(x.dtype)
