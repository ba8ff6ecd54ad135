"""Discriminators and their losses, compared with the same formulas in PyTorch on shared weights.

Run with `pytest -m live` where torch is installed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.golden import relative_error

from focalcodec_jax.train import losses
from focalcodec_jax.train.discriminators import Discriminators, NormedConv
from focalcodec_jax.train.sections import DiscriminatorConfig

pytestmark = pytest.mark.live

CONFIG = DiscriminatorConfig(width=0.125, periods=(2, 5), num_scales=2)
STRIDES = {"period": (3, 3, 3, 3, 1), "scale": (1, 2, 2, 4, 4, 1, 1)}
GROUPS = {"period": (1,) * 5, "scale": (1, 4, 16, 16, 16, 16, 1)}


def in_torch(name: str, params: Any, spectral: Any, sig: Any) -> list:
    """Activations of one discriminator, the scores last, from torch's convolutions and normalisations."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    kind, number = name.split("_")
    batch = sig.shape[0]
    if kind == "period":
        period = int(number)
        x = F.pad(sig[:, None], (0, -sig.shape[1] % period), mode="reflect").reshape(batch, 1, -1, period)
    else:
        x = sig[:, None, :, None]
        for _ in range(int(number)):
            x = F.avg_pool1d(x[..., 0], 4, 2, padding=2)[..., None]
    layers = []
    for index in range(len(STRIDES[kind]) + 1):
        last = index == len(STRIDES[kind])
        key = "output" if last else f"convs_{index}"
        own = {k: torch.tensor(np.array(v)) for k, v in params[key].items()}
        size, dim_in, dim_out = own["kernel"].shape
        weight = own["kernel"].permute(2, 1, 0)  # (dim_out, dim_in, kernel)
        conv: Any = torch.nn.Conv2d(dim_in, dim_out, (size, 1))
        if "scale" in own:
            conv = torch.nn.utils.parametrizations.weight_norm(conv)
            parametrization: Any = conv.parametrizations.weight
            parametrization.original0.data = own["scale"].reshape(-1, 1, 1, 1)
            parametrization.original1.data = weight[..., None]
        else:
            conv = torch.nn.utils.parametrizations.spectral_norm(conv)
            parametrization = conv.parametrizations.weight
            parametrization.original.data = weight[..., None]
            # PyTorch flattens (dim_in, kernel), this package (kernel, dim_in).
            v = torch.tensor(np.array(spectral[key]["v"])).reshape(size, dim_in).T.reshape(-1)
            parametrization[0]._v.data, parametrization[0]._u.data = v, torch.tensor(np.array(spectral[key]["u"]))
            conv.eval()
        stride, groups = (1, 1) if last else (STRIDES[kind][index], GROUPS[kind][index])
        x = F.conv2d(x, conv.weight, own["bias"], (stride, 1), ((size - 1) // 2, 0), 1, groups)
        if not last:
            x = F.leaky_relu(x, 0.1)
        layers.append(x)
    return layers


def torch_losses(real: list, fake: list) -> tuple:
    """Hinge for discriminators and generator, and feature matching."""
    import torch

    discriminators = sum(
        torch.relu(1 - r[-1]).mean() + torch.relu(1 + f[-1]).mean() for r, f in zip(real, fake, strict=True)
    )
    generator = sum(torch.relu(1 - f[-1]).mean() for f in fake)
    distances = [
        (a.detach() - b).abs().mean() for r, f in zip(real, fake, strict=True) for a, b in zip(r, f, strict=True)
    ]
    return discriminators, generator, sum(distances) / len(distances)


def test_discriminators_and_their_losses():
    import torch

    rng = np.random.default_rng(0)
    real, fake = (rng.normal(size=(2, 3001)).astype(np.float32) for _ in range(2))
    model = Discriminators(CONFIG, jnp.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(real))
    _, changed = model.apply(variables, jnp.asarray(real), mutable=["spectral"])
    variables = {"params": jax.tree.map(lambda x: 2 * x, variables["params"]), "spectral": changed["spectral"]}
    ones = jnp.ones(2)

    def ours(fake):
        outputs: Any = [model.apply(variables, jnp.asarray(sig)) for sig in (real, fake)]
        terms = (
            losses.discriminator_loss(outputs[0], outputs[1], ones),
            losses.adversarial_loss(outputs[1], ones),
            losses.matching_loss(outputs[0], outputs[1], ones),
        )
        return terms[1] + 54 * terms[2], (terms, outputs)

    (_, (terms, outputs)), grad = jax.jit(jax.value_and_grad(ours, has_aux=True))(jnp.asarray(fake))
    wave = torch.tensor(fake, requires_grad=True)
    spectral = variables["spectral"]
    theirs = [
        [in_torch(n, p, spectral.get(n), sig) for n, p in variables["params"].items()]
        for sig in (torch.tensor(real), wave)
    ]
    for own, reference in zip(outputs[1], sorted_as(variables["params"], theirs[1], CONFIG), strict=True):
        assert relative_error(np.asarray(own.scores).reshape(-1), scores(reference[-1])) <= 1e-5
    expected = torch_losses(*theirs)
    for own, reference in zip(terms, expected, strict=True):
        np.testing.assert_allclose(own, reference.item(), rtol=1e-5)
    (expected[1] + 54 * expected[2]).backward()
    assert wave.grad is not None
    assert relative_error(np.asarray(grad), wave.grad.numpy()) <= 1e-4


def sorted_as(params: Any, layers: list, config: DiscriminatorConfig) -> list:
    """Layers in the order of this package: periods, then scales."""
    names = [f"period_{p}" for p in config.periods] + [f"scale_{s}" for s in range(config.num_scales)]
    return [layers[list(params).index(name)] for name in names]


def scores(x: Any) -> np.ndarray:
    """(batch, 1, frames, period) in this package's order, (batch, period, frames)."""
    return x.detach().numpy()[:, 0].swapaxes(1, 2).reshape(-1)


def test_power_iteration_equals_that_of_torch():
    """One power iteration from the same u equals that of `torch.nn.utils.spectral_norm`."""
    import torch

    layer = NormedConv(8, 5, 1, 1, True, False, jnp.float32)
    x = jnp.ones((1, 12, 6))
    variables = layer.init(jax.random.key(0), x)
    result: Any = layer.apply(variables, x, mutable=["spectral"])
    y, changed = result
    params = {name: torch.tensor(np.array(value)) for name, value in variables["params"].items()}
    conv = torch.nn.utils.spectral_norm(torch.nn.Conv1d(6, 8, 5, padding=2))
    state: Any = conv.train()
    state.weight_orig.data, state.bias.data = params["kernel"].permute(2, 1, 0), params["bias"]
    state.weight_u.data = torch.tensor(np.array(variables["spectral"]["u"]))
    expected = conv(torch.ones(1, 6, 12))
    np.testing.assert_allclose(changed["spectral"]["u"], state.weight_u.numpy(), atol=1e-6)
    np.testing.assert_allclose(y[0].T, expected[0].detach().numpy(), atol=1e-5)
