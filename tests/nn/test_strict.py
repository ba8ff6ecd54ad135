"""The float32 model, its gradients and the losses run without implicit promotion of ranks or dtypes.

Promotion is checked while a program is traced, so nothing is compiled here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support.golden import CODECS, GOLDEN

from focalcodec_jax import CodecConfig, FocalCodec
from focalcodec_jax.nn import bsq, voice
from focalcodec_jax.nn.codec import initialize
from focalcodec_jax.train import losses
from focalcodec_jax.train.discriminators import Discriminators
from focalcodec_jax.train.sections import DiscriminatorConfig, MelConfig

DIFFERENTIATED = ("offline_options", "causal_ragged", "offline_12_5hz")
OTHERS = [name for name in CODECS if not name.startswith("legacy") and name not in DIFFERENTIATED]
SIG = jax.ShapeDtypeStruct((2, 4000), jnp.float32)
LENGTHS = jax.ShapeDtypeStruct((2,), jnp.int32)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def model_and_variables(name: str) -> tuple[FocalCodec, Any]:
    model = FocalCodec(CodecConfig.from_json(GOLDEN / name / "config.json"))
    return model, jax.eval_shape(lambda key: initialize(model, key), jax.random.key(0))


@pytest.mark.parametrize("name", OTHERS)
def test_encode_and_decode(name: str):
    model, variables = model_and_variables(name)  # initialization runs the model without lengths
    jax.eval_shape(model.apply, variables, SIG, LENGTHS)


def test_tokens():
    jax.eval_shape(lambda toks: bsq.toks_to_codes(toks, 13), jax.ShapeDtypeStruct((2, 9), jnp.int32))
    jax.eval_shape(bsq.lats_to_toks, jax.ShapeDtypeStruct((2, 9, 13), jnp.float32))


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradients(name: str):
    model, variables = model_and_variables(name)

    def loss(variables, sig, lengths):
        result: Any = model.apply(variables, sig, lengths)
        _, codes, decoded = result
        return codes.sum() + (decoded**2).mean()

    jax.eval_shape(jax.grad(loss), variables, SIG, LENGTHS)


def test_voice_conversion():
    qfeats, points = jax.ShapeDtypeStruct((2, 9, 16), jnp.float32), jax.ShapeDtypeStruct((5000, 16), jnp.float32)
    jax.eval_shape(voice.nearest, qfeats, points)


def test_losses():
    def loss(lats, qfeats, feats, fake, lengths):
        rows = (lengths > 0).astype(jnp.float32)
        mels = (MelConfig(), MelConfig(n_fft=256, hop_length=64, num_mels=10))
        return (
            bsq.entropy_loss(lats, lengths)
            + bsq.entropy_loss(lats)
            + losses.feature_loss(qfeats, feats, lengths)
            + losses.mel_loss(fake, jnp.ones_like(fake), lengths, mels, 16_000)
            + losses.weighted_mean(fake, rows)
        )

    lats, feats = jax.ShapeDtypeStruct((2, 9, 5), jnp.float32), jax.ShapeDtypeStruct((2, 9, 16), jnp.float32)
    jax.eval_shape(jax.grad(loss, argnums=(0, 1, 3)), lats, feats, feats, SIG, LENGTHS)


@pytest.mark.parametrize("split", [False, True])
def test_discriminators_and_adversarial_losses(split: bool):
    model = Discriminators(DiscriminatorConfig(width=0.03, periods=(3,), num_scales=2), jnp.float32, split)
    variables = jax.eval_shape(model.init, jax.random.key(0), SIG)

    def loss(variables, fake, real):
        rows = jnp.ones(len(fake))
        both: Any = model.apply(variables, real, mutable=["spectral"]), model.apply(variables, fake)
        (real, _), fake = both
        return (
            losses.discriminator_loss(real, fake, rows)
            + losses.adversarial_loss(fake, rows)
            + losses.matching_loss(real, fake, rows)
            + losses.mean_score(fake, rows)
        )

    def grads(variables, fake, real):
        return jax.grad(lambda params, fake: loss({**variables, "params": params}, fake, real), argnums=(0, 1))(
            variables["params"], fake
        )

    jax.eval_shape(grads, variables, SIG, SIG)
