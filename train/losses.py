"""Losses as plain functions.

Averages are over real frames of readable items. As in HiFi-GAN, adversarial losses use whole items, including the
silence after a recording that is shorter than its crop. Under `jax.jit` with sharded arrays, averages are over the
global batch.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from focalcodec_jax.nn.layers import frame_mask
from focalcodec_jax.nn.spectral import stft_magnitude

from .discriminators import DiscriminatorOutput
from .sections import MelConfig

Outputs = list[DiscriminatorOutput]
"""One output per discriminator."""
Rows = Float[Array, " batch"]
"""Weight of each item: 1 for a recording, 0 for an empty row."""


def weighted_mean(x: Float[Array, " batch *rest"], rows: Rows) -> Float[Array, ""]:
    """Mean over items with a weight of 1."""
    return (x.reshape(len(x), -1).mean(axis=1) * rows).sum() / jnp.maximum(rows.sum(), 1)


def feature_loss(
    qfeats: Float[Array, "batch frames dim"], feats: Float[Array, "batch frames dim"], lengths: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Mean squared error over real frames."""
    real = frame_mask(lengths, feats.shape[1])
    # The difference is masked instead of its square, because values past an item's end may be NaN.
    error = jnp.where(real[..., None], qfeats.astype(jnp.float32) - feats.astype(jnp.float32), 0) ** 2
    return error.sum() / jnp.maximum(real.sum() * feats.shape[-1], 1).astype(jnp.float32)


# --- log-mel ---------------------------------------------------------------------------------------------------


@lru_cache
def mel_basis(config: MelConfig, rate_hz: int) -> np.ndarray:
    """Triangular mel filters of Slaney from librosa, (bins, mels)."""
    import librosa

    return librosa.filters.mel(
        sr=rate_hz, n_fft=config.n_fft, n_mels=config.num_mels, fmin=config.min_hz, fmax=config.max_hz
    ).T


def log_mel(sig: Float[Array, "batch samples"], config: MelConfig, rate_hz: int) -> Float[Array, "batch frames mels"]:
    """Logarithm of mel magnitudes clamped to `config.floor`."""
    magnitude = stft_magnitude(sig, config.n_fft, config.hop_length)
    mel = jnp.matmul(magnitude, mel_basis(config, rate_hz), precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(mel, config.floor))


def mel_loss(
    fake: Float[Array, "batch samples"],
    real: Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    configs: tuple[MelConfig, ...],
    rate_hz: int,
) -> Float[Array, ""]:
    """L1 distance between log-mel spectrograms, averaged over resolutions and over frames centred within an item.

    Both signals must be zero past the end of each item.
    """
    total = jnp.zeros(())
    for config in configs:
        error = jnp.abs(log_mel(fake, config, rate_hz) - log_mel(real, config, rate_hz)).mean(axis=-1)
        counted = frame_mask(-(-lengths // config.hop_length), error.shape[1]).astype(jnp.float32)
        total += (error * counted).sum() / jnp.maximum(counted.sum(), 1)
    return total / len(configs)


# --- adversarial -----------------------------------------------------------------------------------------------


def discriminator_loss(real: Outputs, fake: Outputs, rows: Rows) -> Float[Array, ""]:
    """Hinge loss of the discriminators, summed over discriminators."""
    return sum(
        (
            weighted_mean(jnp.maximum(0, 1 - r.scores), rows) + weighted_mean(jnp.maximum(0, 1 + f.scores), rows)
            for r, f in zip(real, fake, strict=True)
        ),
        start=jnp.zeros(()),
    )


def adversarial_loss(fake: Outputs, rows: Rows) -> Float[Array, ""]:
    """Hinge loss of the generator, max(0, 1 − score), summed over discriminators."""
    return sum((weighted_mean(jnp.maximum(0, 1 - f.scores), rows) for f in fake), start=jnp.zeros(()))


def matching_loss(real: Outputs, fake: Outputs, rows: Rows) -> Float[Array, ""]:
    """L1 distance between the activations of the discriminators, averaged over all layers of all discriminators."""
    layers = [
        weighted_mean(jnp.abs(jax.lax.stop_gradient(a) - b).astype(jnp.float32), rows)
        for r, f in zip(real, fake, strict=True)
        for a, b in zip(r.layers, f.layers, strict=True)
    ]
    return sum(layers, start=jnp.zeros(())) / len(layers)


def mean_score(outputs: Outputs, rows: Rows) -> Float[Array, ""]:
    """Mean score, averaged over discriminators."""
    return sum((weighted_mean(o.scores, rows) for o in outputs), start=jnp.zeros(())) / len(outputs)
