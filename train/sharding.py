"""Where arrays live: a mesh of data × fsdp × tensor, and one ordered list of rules for parameters, gradients and
moments. XLA inserts the collectives."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec as P

from focalcodec_jax.errors import ConfigError

from .run_config import MeshConfig

AXES = ("data", "fsdp", "tensor")

RULES: tuple[tuple[str, P], ...] = (
    # one number per channel, head or step; also the position table and spectral norm's vectors
    (r"/(bias|scale|alpha|gamma|gru_rel_pos_const|u|v)$", P()),
    (r"/relative_embedding/embedding$", P()),
    # pairs of products: the inner dimension is split over tensor, so that only their result is summed
    (r"/(feed_forward|refiner)/in_proj/kernel$", P("fsdp", "tensor")),
    (r"/(feed_forward|refiner)/out_proj/kernel$", P("tensor", "fsdp")),
    (r"/pwconv1/kernel$", P("fsdp", "tensor")),
    (r"/pwconv2/kernel$", P("tensor", "fsdp")),
    (r"/attention/qkv_proj/kernel$", P("fsdp", "tensor")),
    (r"/attention/out_proj/kernel$", P("tensor", "fsdp")),
    (r"/(in_proj|out_proj|context_proj|feature_proj|gru_rel_pos_linear|proj)/kernel$", P("fsdp", None)),
    # convolutions, (kernel, dim_in, dim_out)
    (r"/(conv|dwconv|downscale|upscale|embedding|output|convs_\d+)/kernel$", P(None, None, "fsdp")),
    (r"/modulation/(layers_\d+|\w*context\w*)/kernel$", P(None, None, "fsdp")),
)
"""(path, how its axes lie on the mesh); the first that is found in a path holds."""


def make_mesh(config: MeshConfig, batch_size: int, devices: list | None = None) -> Mesh:
    """The devices in a mesh of data × fsdp × tensor.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices, or the batch does not divide.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, batch_size, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_shape(config: MeshConfig, batch_size: int, devices: int) -> tuple[int, ...]:
    """Sizes of the axes on so many devices; raises as `make_mesh`."""
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
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P(("data", "fsdp")))


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A sharding for each array of a tree of parameters or of training state.

    Raises:
        ConfigError: names every path that no rule is for.
    """
    named = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    unmatched = sorted(path for path, leaf in named if leaf.shape and rule(path) is None)
    if unmatched:
        raise ConfigError(f"no sharding rule is for {', '.join(unmatched)}; add one to RULES")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_name(path), leaf.shape, mesh.shape)), tree
    )


def spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """A rule's axes, but for those whose dimension does not divide: it stays whole."""
    found = rule(path) or P()
    axes = [
        axis if axis is not None and size % sizes[axis] == 0 else None
        for axis, size in zip(tuple(found) + (None,) * len(shape), shape, strict=False)
    ]
    while axes and axes[-1] is None:
        axes.pop()
    return P(*axes)


def rule(path: str) -> P | None:
    return next((found for pattern, found in RULES if re.search(pattern, path)), None)


def path_name(path: tuple) -> str:
    """`/decoder/head/proj/kernel`, also where an optimizer's state holds the parameters' names inside its own."""
    keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path)
    return "".join(f"/{key}" for key in keys)


def gathered(params: Any, mesh: Mesh) -> Any:
    """Parameters as a step computes with them: whole along fsdp. The gradient of this scatters again."""

    def gather(path, leaf):
        axes = (None if axis == "fsdp" else axis for axis in spec(path_name(path), leaf.shape, mesh.shape))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*axes)))

    return jax.tree_util.tree_map_with_path(gather, params)


def put(tree: Any, where: Any) -> Any:
    """Host arrays onto the devices, each process its share."""
    return jax.tree.map(
        lambda array, sharding: jax.make_array_from_callback(
            np.shape(array), sharding, lambda index: np.asarray(array)[index]
        ),
        tree,
        where,
    )
