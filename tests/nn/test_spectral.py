"""The inverse STFT inverts the STFT of librosa, also at the edges."""

import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from focalcodec_jax.nn.spectral import hann_window, inverse_frames, istft, overlap_add


@pytest.mark.parametrize(("n_fft", "hop"), [(1024, 320), (640, 320), (320, 320), (1026, 200)])
def test_istft_inverts_librosa(n_fft: int, hop: int):
    """The inverse STFT of a signal's STFT is the signal, except where windows hardly overlap."""
    rng = np.random.default_rng(0)
    sig = rng.normal(size=hop * 40).astype(np.float32)
    cut = (n_fft - hop) // 2
    spectrum = librosa.stft(np.pad(sig, cut), n_fft=n_fft, hop_length=hop, window="hann", center=False).T
    frames = inverse_frames(jnp.abs(spectrum)[None], jnp.angle(spectrum)[None])
    rebuilt = istft(frames, hop)[0]
    assert len(rebuilt) == len(spectrum) * hop
    # Where windows hardly overlap, the envelope is near zero and amplifies rounding errors.
    covered = np.asarray(overlap_add(jnp.tile(hann_window(n_fft) ** 2, (len(spectrum), 1)), hop))[cut:][: len(rebuilt)]
    sure = covered > 1e-2
    assert sure.mean() > 0.75
    np.testing.assert_allclose(rebuilt[sure], sig[: len(rebuilt)][sure], atol=1e-4)


@pytest.mark.parametrize(("frames", "n_fft", "hop"), [(1, 8, 3), (5, 8, 3), (4, 6, 6), (7, 10, 4)])
def test_overlap_add_equals_a_loop(frames: int, n_fft: int, hop: int):
    x = np.random.default_rng(0).normal(size=(2, frames, n_fft)).astype(np.float32)
    expected = np.zeros((2, (frames - 1) * hop + n_fft), np.float32)
    for index in range(frames):
        expected[:, index * hop : index * hop + n_fft] += x[:, index]
    np.testing.assert_allclose(overlap_add(jnp.asarray(x), hop), expected, rtol=1e-6, atol=1e-6)


def test_imaginary_parts_at_dc_and_nyquist_are_ignored():
    magnitude = jnp.ones((1, 1, 5))
    phase = jnp.full((1, 1, 5), 0.3)
    flipped = phase.at[..., jnp.array([0, 4])].multiply(-1)  # same real part, different imaginary part
    np.testing.assert_array_equal(inverse_frames(magnitude, phase), inverse_frames(magnitude, flipped))
