"""One training step: padding, micro-batches, FLOPs, and what a dry run says of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.training import tiny
from typer.testing import CliRunner

from focalcodec_jax.cli import app
from focalcodec_jax.errors import ConfigError
from focalcodec_jax.nn.codec import FocalCodec, initialize
from focalcodec_jax.train import sharding, step_flops
from focalcodec_jax.train.stages import Batch
from focalcodec_jax.train.start import codec_config
from focalcodec_jax.train.step import Trainer, TrainState


def trainer(stage: str, **changes: Any) -> tuple[Trainer, Any]:
    config = tiny(stage, **changes)
    model = FocalCodec(codec_config(config.model))
    return Trainer(config, model), initialize(model, jax.random.key(0))["params"]


@pytest.mark.parametrize("stage", ["quantizer", "decoder", "end-to-end"])
def test_losses_and_gradients_ignore_padding(stage: str):
    """Longer padding, filled with noise, and unreadable rows change nothing."""
    trained, params = trainer(stage)
    rng = np.random.default_rng(0)
    lengths = np.array([3300, 6000, 4000, 0], np.int32)
    sig = 0.1 * rng.normal(size=(4, 6400)).astype(np.float32)
    crop = np.array([0.1, 0.9, 0.5, 0.3], np.float32)

    def padded(length: int, value: float) -> Batch:
        noise = value * rng.normal(size=(4, length)).astype(np.float32)
        noise[:, :6400] = np.where(np.arange(6400) < lengths[:, None], sig, noise[:, :6400])
        return Batch(*map(jnp.asarray, (noise, lengths, crop, lengths * 0)))

    def step(params, batch):
        return jax.value_and_grad(lambda p: trained.generator_loss(p, None, batch), has_aux=True)(params)

    compiled = jax.jit(step)
    (loss, (noted, _, sums)), grads = compiled(params, padded(6400, 0.0))
    (loss_again, (noted_again, _, sums_again)), grads_again = compiled(params, padded(8000, 1.0))
    np.testing.assert_allclose(loss_again, loss, rtol=1e-5)
    for name in noted:
        np.testing.assert_allclose(noted_again[name], noted[name], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(sums_again.get("counts", 0), sums.get("counts", 0))
    norm = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    for a, b in zip(jax.tree.leaves(grads_again), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * norm)


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    """Micro-batches are weighted by their real frames. The codebook's entropy is per micro-batch and left out."""
    rng = np.random.default_rng(0)
    sig = jnp.asarray(0.1 * rng.normal(size=(8, 3840)), jnp.float32)
    lengths = jnp.array([3840, 3200, 0, 3840, 1600, 0, 0, 3840])
    batch = Batch(sig, lengths, jnp.zeros(8), lengths * 0)
    found = []
    for accumulate in (1, 4):
        one, params = trainer("quantizer", optimizer={"accumulate": accumulate}, loss={"entropy": 0.0})
        trained, frozen = one.config.split_params(params)
        state, metrics = jax.jit(one.step)(one.init(trained, jax.random.key(0)), frozen, batch, jnp.float32(1e-3))
        assert isinstance(state, TrainState)
        found.append((state.params, metrics))
    (params, metrics), (params_again, metrics_again) = found
    for name in ("loss/total", "loss/feature", "generator/gradient_norm", "samples"):
        np.testing.assert_allclose(metrics_again[name], metrics[name], rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(metrics_again["counts"], metrics["counts"])
    for a, b in zip(jax.tree.leaves(params_again), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_flops_do_not_depend_on_the_form_of_grouped_convolutions():
    rng = np.random.default_rng(0)
    batch = Batch(jnp.asarray(rng.normal(size=(2, 3840)), jnp.float32), jnp.full(2, 3840), jnp.zeros(2), jnp.zeros(2))
    found = []
    for tensor in (1, 2):
        one, params = trainer("decoder", mesh={"tensor": tensor}, discriminator={"width": 0.0625})
        trained, frozen = one.config.split_params(params)
        found.append(step_flops.of_step(one, jax.eval_shape(one.init, trained, jax.random.key(0)), frozen, batch))
    assert found[0] == found[1] > 1e6


def test_stages_refuse_codecs_they_cannot_train():
    wide = {"preset": "focalcodec_50hz_4k_causal", "codec": None}
    with pytest.raises(ConfigError, match="this codec decodes to 24000 Hz"):
        trainer("decoder", model=wide)


def test_dry_run_says_what_a_run_would_be():
    result = CliRunner().invoke(app, ["train", "run", "smoke", "--dry-run", "optimizer.learning_rate=3e-4"])
    assert result.exit_code == 0, result.output
    for part in ("learning_rate: 0.0003", "mesh: data 1", "trained: decoder", "per device", "TFLOP"):
        assert part in result.output
    with pytest.raises(ConfigError, match=r"does not fit 1 device"):
        sharding.make_mesh(tiny(mesh={"fsdp": 3}).mesh, 8, jax.devices()[:1])
