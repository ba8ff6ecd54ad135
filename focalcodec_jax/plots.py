"""Plots of speech and its tokens."""

from pathlib import Path

import numpy as np

from focalcodec_jax.files import written_whole
from focalcodec_jax.nn.spectral import hann_window

_N_FFT_SECONDS, _HOP_SECONDS = 0.032, 0.008
_FLOOR_DB = -80.0


def reconstruction(
    path: str | Path, before: tuple[np.ndarray, int], after: tuple[np.ndarray, int], toks: np.ndarray, bits: int
) -> None:
    """Draw the spectrograms of the input and the output, and below them the bits of the tokens.

    Args:
        path: image file to write, `.png` or another format of matplotlib.
        before, after: input and output, each as (samples,) signal and sample rate in Hz.
        toks: (tokens,) integers.
        bits: number of bits per token.

    Raises:
        OSError: The file cannot be written.
        ValueError: matplotlib does not support the format.
    """
    from matplotlib.figure import Figure

    seconds = len(before[0]) / before[1]
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 2))
    _draw_pair(axes, before, after)
    values = (toks[:, None] >> np.arange(bits)) & 1
    rate = f"{len(toks) / seconds:.1f} tokens/s × {bits} bits"
    axes[2].imshow(values.T, origin="lower", aspect="auto", cmap="gray_r", extent=(0, seconds, 0, bits), vmin=0, vmax=1)
    axes[2].set(title=f"tokens: {rate}", xlabel="time (s)", ylabel="bit", xlim=(0, seconds))
    with written_whole(path) as part:
        figure.savefig(part, dpi=120)


def spectrogram_pair(before: np.ndarray, after: np.ndarray, rate_hz: int) -> np.ndarray:
    """Draw the spectrograms of two (samples,) signals, one above the other.

    Returns:
        A (height, width, 3) uint8 RGB image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True)
    _draw_pair(axes, (before, rate_hz), (after, rate_hz))
    axes[1].set(xlabel="time (s)")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_pair(axes, before: tuple[np.ndarray, int], after: tuple[np.ndarray, int]) -> None:
    """Draw the spectrograms of two (signal, rate) pairs into the first two axes, with the same scales."""
    top_hz = max(before[1], after[1]) / 2
    for axis, (sig, rate_hz), title in zip(axes, (before, after), ("input", "output"), strict=False):
        axis.imshow(
            _decibels(sig, rate_hz).T,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=_FLOOR_DB,
            vmax=0,
            extent=(0, len(sig) / rate_hz, 0, rate_hz / 2000),
        )
        axis.set(title=title, ylabel="frequency (kHz)", ylim=(0, top_hz / 1000), facecolor="black")
    axes[0].figure.colorbar(axes[0].images[0], ax=list(axes[:2]), label="level (dB)")


def _decibels(sig: np.ndarray, rate_hz: int) -> np.ndarray:
    """Spectrogram in dB relative to its maximum, (frames, bins)."""
    n_fft, hop = 2 * round(_N_FFT_SECONDS * rate_hz / 2), round(_HOP_SECONDS * rate_hz)
    padded = np.pad(sig, (n_fft // 2, n_fft // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    magnitude = np.abs(np.fft.rfft(frames * hann_window(n_fft)))
    return 20 * np.log10(np.maximum(magnitude / max(magnitude.max(), 1e-9), 10 ** (_FLOOR_DB / 20)))
