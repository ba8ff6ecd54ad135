"""Short-time Fourier transforms. Pure functions in float32; frames lie on the second-last axis."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from focalcodec_jax.nn.layers import frame_mask


def hann_window(n_fft: int) -> np.ndarray:
    """Periodic Hann window, float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


def stft_magnitude(
    sig: Float[Array, "batch samples"], n_fft: int, hop_length: int
) -> Float[Array, "batch frames bins"]:
    """Magnitudes of Hann-windowed frames, 1 + samples // hop_length of them, frame i centred on sample i · hop_length.

    Zeros stand before the first sample and after the last. The gradient at silence is zero.
    """
    pieces = -(-n_fft // hop_length)
    num_frames = 1 + sig.shape[1] // hop_length
    total = (num_frames + pieces - 1) * hop_length
    left = n_fft // 2
    padded = jnp.pad(sig.astype(jnp.float32), ((0, 0), (left, max(0, total - left - sig.shape[1]))))[:, :total]
    # Frames are joined from hop-long pieces: slices, whose gradient is an addition and not a scatter.
    cut = padded.reshape(len(sig), -1, hop_length)
    frames = jnp.concatenate([cut[:, piece : piece + num_frames] for piece in range(pieces)], axis=-1)[..., :n_fft]
    spectrum = jnp.fft.rfft(frames * hann_window(n_fft))
    power = spectrum.real**2 + spectrum.imag**2
    return jnp.sqrt(jnp.maximum(power, 1e-14))


def overlap_add(frames: Float[Array, "*batch frames n_fft"], hop_length: int) -> Float[Array, "*batch samples"]:
    """Add frames at `hop_length` apart, (frames − 1) · hop_length + n_fft samples.

    Each frame is cut into hop-long pieces and the pieces are added as shifted wholes: no scatter, whose indices
    XLA would fold into constants for seconds.
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
    """Inverse real FFT of each frame. The imaginary parts at DC and Nyquist count for nothing."""
    real = np.ones(magnitude.shape[-1], np.float32)
    real[[0, -1]] = 0
    return jnp.fft.irfft(magnitude * jnp.cos(phase) + 1j * (magnitude * jnp.sin(phase) * real))


def istft(
    frames: Float[Array, "batch frames n_fft"], hop_length: int, lengths: Int[Array, " batch"] | None = None
) -> Float[Array, "batch samples"]:
    """Overlap-add windowed inverse frames and divide by the overlap-added squared window.

    Args:
        frames: inverse FFT of each frame, not yet windowed.
        lengths: real frames of each item; what lies past them reaches no sample.

    Returns:
        Exactly `hop_length` samples per frame: (n_fft − hop_length) / 2 are cut at both ends. Silence past an item's
        last frame.
    """
    num_frames, n_fft = frames.shape[1:]
    window = hann_window(n_fft)
    if lengths is None:
        lengths = jnp.full(1, num_frames)
    real = frame_mask(lengths, num_frames)[..., None]
    signal = overlap_add(jnp.where(real, frames, 0) * window, hop_length)
    envelope = overlap_add(real * window**2, hop_length)
    cut = (n_fft - hop_length) // 2
    kept = slice(cut, cut + num_frames * hop_length)
    signal, envelope = signal[:, kept], envelope[:, kept]
    covered = frame_mask(lengths * hop_length, num_frames * hop_length) & (envelope > 1e-11)
    return jnp.where(covered, signal / jnp.where(covered, envelope, 1), 0)
