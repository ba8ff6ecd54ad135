"""Discriminators: sizes, normalisations, and independence of the items."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from focalcodec_jax.train.discriminators import Discriminators, NormedConv
from focalcodec_jax.train.sections import DiscriminatorConfig

NARROW = DiscriminatorConfig(width=0.03, periods=(3,), num_scales=2)


def test_parameter_count_of_hifigan():
    """70.7 M without the 21,799 norms of the normalised kernels."""
    model = Discriminators(DiscriminatorConfig(), jnp.float32)
    shapes: Any = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 7040)))
    kernels: dict[str, Any] = flatten_dict(shapes["params"], sep="/")
    sizes = {path: math.prod(leaf.shape) for path, leaf in kernels.items()}
    norms = {path: size for path, size in sizes.items() if path.endswith("/scale")}
    assert sum(sizes.values()) - sum(norms.values()) == 70_702_792
    assert sum(norms.values()) == 21_799
    assert len({path.split("/")[0] for path in sizes}) == 8


def test_spectral_norm_finds_the_largest_singular_value():
    layer = NormedConv(8, 5, 1, 2, True, False, jnp.float32)
    x = jnp.ones((1, 12, 6))
    variables = layer.init(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"]).reshape(-1, 8)
    state = variables["spectral"]
    for _ in range(60):
        _, changed = layer.apply({**variables, "spectral": state}, x, mutable=["spectral"])
        state = changed["spectral"]
    found = state["v"] @ kernel @ state["u"]
    assert found == pytest.approx(np.linalg.svd(kernel, compute_uv=False)[0], rel=1e-4)


def test_the_spectral_state_changes_in_training_only():
    model = Discriminators(NARROW, jnp.float32)
    sig = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1000)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), sig)
    apply = jax.jit(lambda x: model.apply(variables, x))
    outputs = apply(sig)
    assert [len(output.layers) for output in outputs] == [6, 8, 8]
    assert all(output.scores.shape[0] == 2 for output in outputs)
    assert all(output.layers[-1].shape == output.scores.shape for output in outputs)
    # The output for one recording does not depend on the other.
    for one, both in zip(apply(sig.at[1].set(0)), outputs, strict=True):
        np.testing.assert_allclose(one.scores[0], both.scores[0], rtol=1e-5)
