"""Sharding: a mesh of data × fsdp × tensor, and one ordered list of rules for parameters, gradients and moments.

XLA inserts the collectives.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec as P

from focalcodec_jax.errors import ConfigError

from .sections import MeshConfig

AXES = ("data", "fsdp", "tensor")

RULES: tuple[tuple[str, P], ...] = (
    # One number per channel or head; also the position table and the vectors of spectral normalisation.
    (r"/(bias|scale|alpha|gamma|gru_rel_pos_const|u|v)$", P()),
    (r"/relative_embedding/embedding$", P()),
    # Pairs of matrix products: the inner dimension is split over tensor, so that only the result is summed.
    (r"/(feed_forward|refiner)/in_proj/kernel$", P("fsdp", "tensor")),
    (r"/(feed_forward|refiner)/out_proj/kernel$", P("tensor", "fsdp")),
    (r"/pwconv1/kernel$", P("fsdp", "tensor")),
    (r"/pwconv2/kernel$", P("tensor", "fsdp")),
    (r"/attention/qkv_proj/kernel$", P("fsdp", "tensor")),
    (r"/attention/out_proj/kernel$", P("tensor", "fsdp")),
    (r"/(in_proj|out_proj|context_proj|feature_proj|gru_rel_pos_linear|proj)/kernel$", P("fsdp", None)),
    # Convolutions, (kernel, dim_in, dim_out).
    (r"/(conv|dwconv|downscale|upscale|embedding|output|convs_\d+)/kernel$", P(None, None, "fsdp")),
    (r"/modulation/(layers_\d+|\w*context\w*)/kernel$", P(None, None, "fsdp")),
)
"""(pattern, mesh axis of each dimension). The first pattern that is found in a path applies."""


def make_mesh(config: MeshConfig, batch_size: int, devices: list | None = None) -> Mesh:
    """A mesh of data × fsdp × tensor.

    Args:
        devices: None takes all devices.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices, or the batch does not divide.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, batch_size, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_shape(config: MeshConfig, batch_size: int, devices: int) -> tuple[int, ...]:
    """Sizes of the axes on a number of devices; raises as `make_mesh`."""
    sizes = {axis: getattr(config, axis) for axis in AXES}
    given = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and devices % given == 0:
        sizes = {axis: devices // given if size == -1 else size for axis, size in sizes.items()}
    if -1 in sizes.values() or math.prod(sizes.values()) != devices:
        raise ConfigError(f"mesh {sizes} does not fit {devices} device(s); the sizes must multiply to that")
    split = sizes["data"] * sizes["fsdp"]
    if batch_size % split:
        raise ConfigError(f"a batch of {batch_size} does not divide over data × fsdp = {split} devices")
    return tuple(sizes.values())


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A sharding for each array in a tree of parameters or in a training state.

    Raises:
        ConfigError: names every path without a rule.
    """
    named = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    unmatched = sorted(path for path, leaf in named if leaf.shape and rule(path) is None)
    if unmatched:
        raise ConfigError(f"no sharding rule is for {', '.join(unmatched)}; add one to RULES")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_name(path), leaf.shape, mesh.shape)), tree
    )


def spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """A rule's axes. A dimension that the axis does not divide stays whole.

    Args:
        sizes: size of each mesh axis.
    """
    found = rule(path) or P()
    axes = [
        axis if axis is not None and size % sizes[axis] == 0 else None
        for axis, size in zip(tuple(found) + (None,) * len(shape), shape, strict=False)
    ]
    while axes and axes[-1] is None:
        axes.pop()
    return P(*axes)


def rule(path: str) -> P | None:
    """The rule for a path, or None."""
    return next((found for pattern, found in RULES if re.search(pattern, path)), None)


def path_name(path: tuple) -> str:
    """Name such as `/decoder/head/proj/kernel`, from the keys, fields and indices of a tree path."""
    keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path)
    return "".join(f"/{key}" for key in keys)


def gathered(params: Any, mesh: Mesh) -> Any:
    """Parameters as a step computes with them: replicated along fsdp. The transpose of this scatters gradients."""

    def gather(path, leaf):
        axes = (None if axis == "fsdp" else axis for axis in spec(path_name(path), leaf.shape, mesh.shape))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*axes)))

    return jax.tree_util.tree_map_with_path(gather, params)


def scattered(grads: Any, mesh: Mesh) -> Any:
    """Gradients with the sharding of their parameters."""
    return jax.lax.with_sharding_constraint(grads, shardings(grads, mesh))


def put(tree: Any, where: Any) -> Any:
    """Put host arrays onto the devices. Each process puts its own part."""
    return jax.tree.map(
        lambda array, sharding: jax.make_array_from_callback(
            np.shape(array), sharding, lambda index: np.asarray(array)[index]
        ),
        tree,
        where,
    )
