"""Sharding on a mesh of data × fsdp × tensor. One ordered list of rules covers parameters, gradients and moments.

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
    # Arrays with one number per channel or head, the position table, and the vectors of spectral normalization.
    (r"/(bias|scale|alpha|gamma|gru_rel_pos_const|u|v)$", P()),
    (r"/relative_embedding/embedding$", P()),
    # In pairs of matrix products, the inner dimension is split over tensor, so that only the result is summed.
    (r"/(feed_forward|refiner)/in_proj/kernel$", P("fsdp", "tensor")),
    (r"/(feed_forward|refiner)/out_proj/kernel$", P("tensor", "fsdp")),
    (r"/pwconv1/kernel$", P("fsdp", "tensor")),
    (r"/pwconv2/kernel$", P("tensor", "fsdp")),
    (r"/attention/qkv_proj/kernel$", P("fsdp", "tensor")),
    (r"/attention/out_proj/kernel$", P("tensor", "fsdp")),
    (r"/(in_proj|out_proj|context_proj|feature_proj|gru_rel_pos_linear|proj)/kernel$", P("fsdp", None)),
    # Kernels of convolutions have the axes (kernel, dim_in, dim_out).
    (r"/(conv|dwconv|downscale|upscale|embedding|output|convs_\d+)/kernel$", P(None, None, "fsdp")),
    (r"/modulation/(layers_\d+|\w*context\w*)/kernel$", P(None, None, "fsdp")),
)
"""Pairs of a pattern and the mesh axis of each dimension. The first pattern that matches a path applies."""


def make_mesh(config: MeshConfig, batch_size: int, devices: list | None = None) -> Mesh:
    """Create a mesh of data × fsdp × tensor.

    Args:
        config: sizes of the axes.
        batch_size: size of the global batch.
        devices: devices of the mesh. The default is all devices.

    Raises:
        ConfigError: the product of the sizes is not the number of devices, or the batch cannot be divided evenly.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, batch_size, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_shape(config: MeshConfig, batch_size: int, devices: int) -> tuple[int, ...]:
    """Sizes of the axes for a number of devices.

    Raises:
        ConfigError: as in `make_mesh`.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    given = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and devices % given == 0:
        sizes = {axis: devices // given if size == -1 else size for axis, size in sizes.items()}
    if -1 in sizes.values() or math.prod(sizes.values()) != devices:
        raise ConfigError(
            f"mesh {sizes} does not fit {devices} device(s); the product of the sizes must be this number"
        )
    split = sizes["data"] * sizes["fsdp"]
    if batch_size % split:
        raise ConfigError(f"a batch of {batch_size} cannot be divided evenly over data × fsdp = {split} devices")
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
        ConfigError: a path has no rule. The message names all such paths.
    """
    named = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    unmatched = sorted(path for path, leaf in named if leaf.shape and rule(path) is None)
    if unmatched:
        raise ConfigError(f"there is no sharding rule for {', '.join(unmatched)}; add one to RULES")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_name(path), leaf.shape, mesh.shape)), tree
    )


def spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """Mesh axes of an array. A dimension that cannot be divided evenly is not split.

    Args:
        path: path of the array, as from `path_name`.
        shape: shape of the array.
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
    """Name of a tree path, such as `/decoder/head/proj/kernel`."""
    keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path)
    return "".join(f"/{key}" for key in keys)


def gathered(params: Any, mesh: Mesh) -> Any:
    """Replicate parameters along fsdp for computing. The transpose of this operation scatters gradients."""

    def gather(path, leaf):
        axes = (None if axis == "fsdp" else axis for axis in spec(path_name(path), leaf.shape, mesh.shape))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*axes)))

    return jax.tree_util.tree_map_with_path(gather, params)


def scattered(grads: Any, mesh: Mesh) -> Any:
    """Give gradients the sharding of their parameters."""
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
