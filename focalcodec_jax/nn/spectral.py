"""Short-time Fourier transforms as pure functions in float32. Frames are on the second-to-last axis."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from focalcodec_jax.nn.layers import Lengths, frame_mask


def hann_window(n_fft: int) -> np.ndarray:
    """Periodic Hann window, float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


def stft_magnitude(
    sig: Float[Array, "batch samples"], n_fft: int, hop_length: int
) -> Float[Array, "batch frames bins"]:
    """STFT magnitudes with a Hann window. Frame i is centred on sample i · hop_length.

    The signal is padded with zeros at both ends. The gradient at silence is zero.

    Returns:
        (batch, 1 + samples // hop_length, n_fft // 2 + 1) magnitudes.
    """
    pieces = -(-n_fft // hop_length)
    num_frames = 1 + sig.shape[1] // hop_length
    total = (num_frames + pieces - 1) * hop_length
    left = n_fft // 2
    padded = jnp.pad(sig.astype(jnp.float32), ((0, 0), (left, max(0, total - left - sig.shape[1]))))[:, :total]
    # Frames are concatenated from slices of hop_length samples, because the gradient of a gather is a slow scatter.
    cut = padded.reshape(len(sig), -1, hop_length)
    frames = jnp.concatenate([cut[:, piece : piece + num_frames] for piece in range(pieces)], axis=-1)[..., :n_fft]
    spectrum = jnp.fft.rfft(frames * hann_window(n_fft)[None, None])
    power = spectrum.real**2 + spectrum.imag**2
    return jnp.sqrt(jnp.maximum(power, 1e-14))


def overlap_add(frames: Float[Array, "*batch frames n_fft"], hop_length: int) -> Float[Array, "*batch samples"]:
    """Sum overlapping frames that start `hop_length` samples apart.

    Each frame is cut into pieces of `hop_length` samples. The pieces with the same index are shifted and added as one
    array. A scatter would be slower to compile, because XLA spends seconds folding its indices into constants.

    Returns:
        (..., (frames − 1) · hop_length + n_fft) samples.
    """
    *batch, num_frames, n_fft = frames.shape
    pieces = -(-n_fft // hop_length)
    none = [(0, 0)] * len(batch)
    cut = jnp.pad(frames, [*none, (0, 0), (0, pieces * hop_length - n_fft)])
    cut = cut.reshape(*batch, num_frames, pieces, hop_length)
    total = sum(jnp.pad(cut[..., piece, :], [*none, (piece, pieces - 1 - piece), (0, 0)]) for piece in range(pieces))
    return jnp.reshape(total, (*batch, -1))[..., : (num_frames - 1) * hop_length + n_fft]


def inverse_frames(
    magnitude: Float[Array, "batch frames bins"], phase: Float[Array, "batch frames bins"]
) -> Float[Array, "batch frames n_fft"]:
    """Inverse real FFT of each frame. The imaginary parts at DC and Nyquist are ignored."""
    inner = np.ones((1, 1, magnitude.shape[-1]), np.float32)
    inner[..., [0, -1]] = 0
    return jnp.fft.irfft(jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase) * inner))


def istft(
    frames: Float[Array, "batch frames n_fft"], hop_length: int, lengths: Lengths = None
) -> Float[Array, "batch samples"]:
    """Inverse STFT: overlap-add the windowed frames, and divide by the overlap-added squared window.

    Args:
        frames: inverse FFT of each frame, before windowing.
        hop_length: number of samples between the starts of consecutive frames.
        lengths: number of real frames of each item. The default is all frames. Other frames contribute to no sample.

    Returns:
        (batch, frames · hop_length) samples. At each end, (n_fft − hop_length) / 2 samples are cut. Samples past an
        item's last frame are zero.
    """
    num_frames, n_fft = frames.shape[1:]
    window = hann_window(n_fft)[None, None]
    if lengths is None:
        lengths = jnp.full(1, num_frames)
    real = frame_mask(lengths, num_frames)[..., None]
    signal = overlap_add(jnp.where(real, frames, 0) * window, hop_length)
    envelope = overlap_add(real.astype(jnp.float32) * window**2, hop_length)
    cut = (n_fft - hop_length) // 2
    inner = slice(cut, cut + num_frames * hop_length)
    signal, envelope = signal[:, inner], envelope[:, inner]
    covered = frame_mask(lengths * hop_length, num_frames * hop_length) & (envelope > 1e-11)
    return jnp.where(covered, signal / jnp.where(covered, envelope, 1), 0)
