"""The dry run, which reports the requirements of a run without data and without training."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.nn.codec import FocalCodec, initialize
from focalcodec_jax.pretrained import structure

from . import sharding, step_flops
from .run_config import TrainConfig
from .stages import Batch
from .start import codec_config
from .step import Trainer, TrainState

EXAMPLE_SECONDS = 10.0
"""Length of the recordings of the example batch in seconds, if the configuration does not crop."""


@dataclass(frozen=True)
class ParameterRow:
    """Parameters of one part with one sharding."""

    network: str
    """`trained`, `frozen` or `discriminators`."""
    part: str
    sharding: str
    arrays: int
    parameters: int


@dataclass(frozen=True)
class MemoryRow:
    """Memory that is kept between steps."""

    what: str
    total_bytes: int
    bytes_per_device: int


@dataclass(frozen=True)
class Footprint:
    """Result of `dry_run`."""

    config: TrainConfig
    mesh: dict[str, int]
    """Number of devices along each axis."""
    parameters: tuple[ParameterRow, ...]
    memory: tuple[MemoryRow, ...]
    """Memory that is kept between steps. The activations of a step need additional memory."""
    batch_size: int
    batch_seconds: float
    """Length of each recording of the example batch in seconds."""
    step_flop: int
    """Operations of the matrix products and convolutions of a step, over all devices."""

    @property
    def num_devices(self) -> int:
        """Number of devices in the mesh."""
        return math.prod(self.mesh.values())


def dry_run(config: TrainConfig, devices: int | None = None) -> Footprint:
    """Compute the mesh, the shardings, the memory per device, and the operations per step of a run.

    Args:
        config: configuration of the run.
        devices: number of devices to plan for. The default is the number on this machine.

    Raises:
        ConfigError: the mesh is impossible, or the stage cannot train the codec.
        CheckpointError: the starting codec cannot be found.
    """
    shape = sharding.mesh_shape(config.mesh, config.data.batch_size, devices or jax.device_count())
    mesh = AbstractMesh(shape, sharding.AXES)
    trainer, state, frozen = abstract_run(config)
    batch = example_batch(config)
    return Footprint(
        config=config,
        mesh=dict(mesh.shape),
        parameters=parameter_rows(state, frozen, mesh),
        memory=memory_rows(state, frozen, mesh),
        batch_size=config.data.batch_size,
        batch_seconds=batch.sig.shape[1] / SAMPLE_RATE_HZ,
        step_flop=step_flops.of_step(trainer, state, frozen, batch),
    )


def abstract_run(config: TrainConfig) -> tuple[Trainer, TrainState, Any]:
    """The trainer, the shapes of its state, and the shapes of the fixed parameters."""
    model = FocalCodec(codec_config(config.model))
    name = config.definition.teacher
    teacher = None if name is None else FocalCodec(structure(name, dtype=config.model.dtype))
    trainer = Trainer(config, model, teacher)
    params = _shapes(model)
    if teacher is not None:
        params["teacher"] = {"encoder": _shapes(teacher)["encoder"]}
    trained, frozen = config.split_params(params)
    return trainer, jax.eval_shape(trainer.init, trained, jax.random.key(0)), frozen


def _shapes(model: FocalCodec) -> dict[str, Any]:
    return dict(jax.eval_shape(lambda key: initialize(model, key), jax.random.key(0))["params"])


def example_batch(config: TrainConfig) -> Batch:
    """Shapes of one batch."""
    size = config.data.batch_size
    samples = round((config.data.crop_seconds or EXAMPLE_SECONDS) * SAMPLE_RATE_HZ)
    zeros = jnp.zeros(size, jnp.int32)
    return jax.eval_shape(lambda: Batch(jnp.zeros((size, samples)), zeros, jnp.zeros(size), zeros))


def parameter_rows(state: TrainState, frozen: Any, mesh: AbstractMesh) -> tuple[ParameterRow, ...]:
    """One row for each network, part and sharding."""
    sizes: dict[tuple[str, str, str], list[int]] = {}
    discriminators = {} if state.discriminators is None else state.discriminators.params
    for network, tree in {"trained": state.params, "frozen": frozen, "discriminators": discriminators}.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = sharding.path_name(path)
            spec = sharding.spec(name, leaf.shape, mesh.shape)
            sizes.setdefault((network, name.split("/")[1], str(spec)), []).append(math.prod(leaf.shape))
    return tuple(ParameterRow(*kind, len(counts), sum(counts)) for kind, counts in sorted(sizes.items()))


def memory_rows(state: TrainState, frozen: Any, mesh: AbstractMesh) -> tuple[MemoryRow, ...]:
    """Bytes of parameters and moments, in total and per device. The last row is the sum."""
    discriminators = state.discriminators
    trees = (
        ("trained parameters", state.params),
        ("their moments", state.moments),
        ("frozen parameters", frozen),
        ("discriminators", {} if discriminators is None else discriminators.params),
        ("their moments", {} if discriminators is None else discriminators.moments),
    )
    rows = [MemoryRow(name, state_bytes(tree), state_bytes(tree, mesh)) for name, tree in trees]
    rows.append(MemoryRow("sum", sum(row.total_bytes for row in rows), sum(row.bytes_per_device for row in rows)))
    return tuple(rows)


def state_bytes(tree: Any, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Bytes of a tree on one device of a mesh. Without a mesh, the total number of bytes."""
    if mesh is None:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    where = sharding.shardings(tree, mesh)
    pieces = jax.tree.map(lambda leaf, s: math.prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, where)
    return sum(jax.tree.leaves(pieces))
