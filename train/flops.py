"""Arithmetic of a program, counted from what it says and not from what a compiler makes of it."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from focalcodec_jax.train.stages import Batch
from focalcodec_jax.train.step import Trainer

PEAK_BF16_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 peak of one device, by the beginning of its `device_kind`, as its vendor states it."""


def peak_flops(device: Any) -> float | None:
    """None where it is not known, as on a CPU."""
    found = [peak for name, peak in PEAK_BF16_FLOPS.items() if device.device_kind.startswith(name)]
    return found[0] if found else None


def of_step(trainer: Trainer, state: Any, frozen: Any, batch: Batch) -> int:
    """Operations that a step's mathematics needs: the discriminators' step hears a signal that is there already, and
    nothing is counted twice for being recomputed."""
    params = {**frozen, **state["params"]}
    heard = jax.eval_shape(trainer.outcome, params, batch)
    judges = state.get("judges")
    variables = None if judges is None else {name: judges[name] for name in ("params", "spectral")}

    def generator(trained, frozen, judges, batch):
        return jax.grad(lambda p: trainer.generate(judges, {**frozen, **p}, batch)[0])(trained)

    total = count(generator, state["params"], frozen, variables, batch)
    if variables is not None:

        def discriminators(params, spectral, heard, batch):
            return jax.grad(lambda p: trainer.judged(p, spectral, heard, batch)[0])(params)

        total += count(discriminators, variables["params"], variables["spectral"], heard, batch)
    return total


def count(function: Callable, *args) -> int:
    """Floating-point operations of the matrix products and convolutions of `function(*args)`, forward as written.

    Arguments may be shapes. A multiplication and an addition are two operations.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            dims = params["dimension_numbers"]
            kernel = equation.invars[1].aval.shape
            # each output number takes one kernel of one output channel, whose input side is already per group
            taps = math.prod(kernel) // kernel[dims.rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * taps // params["batch_group_count"]
        else:
            inner = [_count(sub) for value in params.values() for sub in _jaxprs(value)]
            # of a choice, as between forms for different devices, one branch runs
            chosen = max(inner, default=0) if name == "cond" else sum(inner)
            total += chosen * params.get("length", 1) if name == "scan" else chosen
    return total


def _jaxprs(value) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    return []
