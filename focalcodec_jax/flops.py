"""Count the floating-point operations of a program. They are counted in its jaxpr, independently of the compiler."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

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
"""Dense bfloat16 peak of one device according to its vendor, by the prefix of `device_kind`."""


def peak_flops(device: Any) -> float | None:
    """Peak bfloat16 performance of a device in FLOP/s, or None if it is unknown, as for a CPU."""
    found = [peak for name, peak in PEAK_BF16_FLOPS.items() if device.device_kind.startswith(name)]
    return found[0] if found else None


def count(function: Callable, *args) -> int:
    """Count the floating-point operations of the matrix products and convolutions of `function(*args)`.

    A multiplication and an addition are two operations. Arguments may be `jax.ShapeDtypeStruct`.
    """
    return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_jaxpr(jaxpr: Any) -> int:
    """Count the floating-point operations of a jaxpr, as `count` does for a function."""
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
            # Each output value needs the taps of one output channel. The kernel's input dimension is per group.
            taps = math.prod(kernel) // kernel[dims.rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * taps // params["batch_group_count"]
        else:
            inner = [of_jaxpr(sub) for value in params.values() for sub in _jaxprs(value)]
            # Only one branch of a cond runs.
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
