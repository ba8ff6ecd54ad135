"""Losses equal reference values, their definitions, and librosa; padding does not change them."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.golden import GOLDEN, relative_error

from focalcodec_jax.nn import bsq
from focalcodec_jax.train import losses
from focalcodec_jax.train.discriminators import DiscriminatorOutput
from focalcodec_jax.train.sections import MelConfig

REFERENCE = load_file(GOLDEN / "bsq_train.safetensors")


@pytest.mark.parametrize("name", ["bsq13", "bsq8"])
def test_quantizer_as_the_reference_trains_it(name: str):
    x, w = (jnp.asarray(REFERENCE[f"{name}.{key}"]) for key in ("x", "w"))

    def auxiliary(x):
        return 0.1 * bsq.entropy_loss(bsq.normalize(x))

    def through(x):
        return (w * bsq.quantize(bsq.normalize(x))[0]).sum()

    value, grad = jax.jit(jax.value_and_grad(auxiliary))(x)
    assert abs(float(value) - REFERENCE[f"{name}.aux_loss"]) <= 1e-5
    assert relative_error(np.asarray(grad), REFERENCE[f"{name}.grad_aux"]) <= 1e-4
    assert relative_error(np.asarray(jax.grad(through)(x)), REFERENCE[f"{name}.grad_ste"]) <= 1e-6
    codes, toks = bsq.quantize(bsq.normalize(x))
    np.testing.assert_array_equal(toks, REFERENCE[f"{name}.indices"])
    np.testing.assert_allclose(codes, REFERENCE[f"{name}.quantized"], atol=1e-6)


def dense_entropies(lats: np.ndarray, inv_temperature: float) -> tuple[float, float]:
    """The definition, with a probability for every code of every frame."""
    bits = lats.shape[-1]
    codes = np.asarray(bsq.toks_to_codes(jnp.arange(2**bits), bits), np.float64)
    logits = 2 * inv_temperature * lats.reshape(-1, bits).astype(np.float64) @ codes.T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    mean = p.mean(axis=0)
    per_frame = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1).mean()
    return per_frame, -(mean * np.log(np.maximum(mean, 1e-5))).sum()


@pytest.mark.parametrize("bits", [1, 2, 5, 10])
@pytest.mark.parametrize("inv_temperature", [1.0, 100.0])
def test_entropies_equal_the_dense_form(bits: int, inv_temperature: float):
    rng = np.random.default_rng(bits)
    lats = bsq.normalize(jnp.asarray(rng.normal(size=(3, 20, bits)), jnp.float32))
    found = bsq.entropies(lats, inv_temperature=inv_temperature)
    np.testing.assert_allclose(found, dense_entropies(np.asarray(lats), inv_temperature), rtol=1e-5, atol=1e-5)
    assert bsq.entropy_loss(lats, inv_temperature=inv_temperature, diversity=0.5) == pytest.approx(
        float(found[0] - 0.5 * found[1]), abs=1e-6
    )


def test_entropy_loss_of_an_empty_batch_is_zero():
    """A batch of unreadable recordings must not change a mean over batches."""
    value, grad = jax.value_and_grad(bsq.entropy_loss)(jnp.full((2, 9, 6), 0.4), jnp.array([0, 0]))
    assert value == 0
    assert not grad.any()


def test_entropy_loss_ignores_padding():
    rng = np.random.default_rng(0)
    lats = bsq.normalize(jnp.asarray(rng.normal(size=(2, 9, 6)), jnp.float32))
    lengths = jnp.array([9, 4])
    real = jnp.concatenate([lats[0], lats[1, :4]])[None]
    value, grad = jax.value_and_grad(bsq.entropy_loss)(lats, lengths)
    np.testing.assert_allclose(value, bsq.entropy_loss(real), rtol=1e-6)
    assert not grad[1, 4:].any()
    broken = lats.at[1, 4:].set(jnp.nan)
    again, grad = jax.value_and_grad(bsq.entropy_loss)(broken, lengths)
    assert again == value
    assert jnp.isfinite(grad).all()


def test_hinge_as_the_reference_computes_it():
    fake = REFERENCE["gan.fake"]
    rows = jnp.ones(len(fake))
    found = losses.adversarial_loss([DiscriminatorOutput(jnp.asarray(fake), [])], rows)
    np.testing.assert_allclose(found, REFERENCE["gan.hinge_g"], rtol=1e-6)


def test_hinges_and_matching_by_hand():
    rows = jnp.array([1.0, 0.0])  # The second item could not be read.
    scores = jnp.array([[0.5, 3.0], [99.0, 99.0]])
    one = DiscriminatorOutput(scores, [jnp.array([[1.0], [9.0]]), scores])
    other = DiscriminatorOutput(-scores, [jnp.array([[4.0], [9.0]]), -scores])
    # max(0, 1 − real): 0.5, 0; max(0, 1 + fake): 0.5, 0
    np.testing.assert_allclose(losses.discriminator_loss([one], [other], rows), 0.25 + 0.25)
    np.testing.assert_allclose(losses.adversarial_loss([other, other], rows), 2 * (1.5 + 4) / 2)
    np.testing.assert_allclose(losses.matching_loss([one], [other], rows), (3 + (1 + 6) / 2) / 2)
    np.testing.assert_allclose(losses.mean_score([one, other], rows), 0)


@pytest.mark.parametrize(("n_fft", "hop", "floor"), [(1024, 320, 1e-5), (640, 320, 1e-5), (256, 64, 0.2)])
def test_log_mel_equals_librosa(n_fft: int, hop: int, floor: float):
    sig = np.random.default_rng(0).normal(size=(2, 5000)).astype(np.float32)
    config = MelConfig(n_fft=n_fft, hop_length=hop, num_mels=20, floor=floor)
    found = losses.log_mel(jnp.asarray(sig), config, 16_000)
    magnitude = librosa.feature.melspectrogram(
        y=sig, sr=16_000, n_fft=n_fft, hop_length=hop, n_mels=20, fmax=8000, power=1, pad_mode="constant"
    )
    assert (magnitude < floor).any() == (floor == 0.2)
    np.testing.assert_allclose(found, np.log(np.maximum(magnitude, floor)).swapaxes(1, 2), atol=2e-4)


def test_losses_ignore_padding():
    """Longer padding and an unreadable item change nothing."""
    rng = np.random.default_rng(0)
    real, fake = (jnp.asarray(rng.normal(size=(2, 4000)), jnp.float32) for _ in range(2))
    lengths = jnp.array([4000, 2500])
    real, fake = (jnp.where(jnp.arange(4000) < lengths[:, None], x, 0) for x in (real, fake))
    configs = (MelConfig(), MelConfig(n_fft=256, hop_length=64, num_mels=10))
    expected = losses.mel_loss(fake, real, lengths, configs, 16_000)
    longer = [jnp.pad(x, ((0, 1), (0, 3000))) for x in (fake, real)]
    found = losses.mel_loss(longer[0], longer[1], jnp.array([4000, 2500, 0]), configs, 16_000)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    feats = jnp.asarray(rng.normal(size=(2, 6, 3)), jnp.float32)
    qfeats = jnp.asarray(rng.normal(size=(2, 6, 3)), jnp.float32)
    by_hand = (((qfeats - feats)[0] ** 2).sum() + ((qfeats - feats)[1, :2] ** 2).sum()) / (8 * 3)
    padded = qfeats.at[1, 2:].set(jnp.nan)
    np.testing.assert_allclose(losses.feature_loss(padded, feats, jnp.array([6, 2])), by_hand, rtol=1e-6)


def test_silence_has_a_finite_gradient():
    silent = jnp.zeros((1, 3200))
    grad = jax.grad(lambda x: losses.mel_loss(x, silent + 0.1, jnp.array([3200]), (MelConfig(),), 16_000))(silent)
    assert jnp.isfinite(grad).all()
