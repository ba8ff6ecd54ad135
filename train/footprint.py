"""What a run would be, without data and without computing anything."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import yaml
from jax.sharding import AbstractMesh, Mesh
from rich.console import Console
from rich.table import Table

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.nn.codec import FocalCodec, initialize

from . import sharding, step_flops as flops
from .run_config import TrainConfig
from .stages import Batch
from .start import codec_config, plain
from .step import Trainer

EXAMPLE_SECONDS = 10.0
"""Length of recording that a step's cost is stated for, where the configuration does not crop."""


def show(config: TrainConfig, console: Console, devices: int | None = None) -> None:
    """Print the resolved configuration, the mesh, where each parameter lies, memory per device and FLOPs per step.

    Args:
        devices: how many to plan for; by default those of this machine.

    Raises:
        ConfigError: an impossible mesh, or a codec the stage cannot train.
        CheckpointError: the codec to begin from cannot be found.
    """
    shape = sharding.mesh_shape(config.mesh, config.data.batch_size, devices or jax.device_count())
    mesh = AbstractMesh(shape, sharding.AXES)
    trainer, state, frozen = abstract(config)
    console.print(yaml.safe_dump(plain(config.to_dict()), sort_keys=False), highlight=False)
    sizes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    console.print(f"mesh: {sizes}" + (f" on {mesh.size} × {jax.devices()[0].device_kind}" if devices is None else ""))
    console.print(parameters(state, frozen, mesh))
    console.print(memory(state, frozen, mesh))
    batch = example_batch(config)
    seconds = batch.sig.shape[1] / SAMPLE_RATE_HZ
    step = flops.of_step(trainer, state, frozen, batch)
    console.print(
        f"step of {config.data.batch_size} × {seconds:g} s: {step / 1e12:.3g} TFLOP, "
        f"{step / mesh.size / 1e12:.3g} per device (matrix products and convolutions)"
    )


def abstract(config: TrainConfig) -> tuple[Trainer, Any, Any]:
    """The trainer, and shapes of its state and of the frozen parts."""
    model = FocalCodec(codec_config(config.model))
    trainer = Trainer(config, model)
    params = jax.eval_shape(lambda key: initialize(model, key), jax.random.key(0))["params"]
    trained, frozen = config.parted(params)
    return trainer, jax.eval_shape(trainer.init, trained, jax.random.key(0)), frozen


def example_batch(config: TrainConfig) -> Batch:
    """Shapes of one batch."""
    size = config.data.batch_size
    samples = round((config.data.crop_seconds or EXAMPLE_SECONDS) * SAMPLE_RATE_HZ)
    none = jnp.zeros(size, jnp.int32)
    return jax.eval_shape(lambda: Batch(jnp.zeros((size, samples)), none, jnp.zeros(size), none))


def parameters(state: Any, frozen: Any, mesh: AbstractMesh) -> Table:
    """Where each kind of parameter lies: one line per network, part and sharding."""
    kinds: dict[tuple[str, str], list[int]] = {}
    trees = {"trained": state["params"], "frozen": frozen, "discriminators": state.get("judges", {}).get("params", {})}
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            where = sharding.spec(sharding.path_name(path), leaf.shape, mesh.shape)
            part = f"{name}: {sharding.path_name(path).split('/')[1]}"
            kinds.setdefault((part, str(where)), []).append(math.prod(leaf.shape))
    table = Table(title="parameters")
    for column in ("part", "sharding", "arrays", "parameters (M)"):
        table.add_column(column, justify="right" if column[0] == "a" or "(" in column else "left")
    for (part, where), counts in sorted(kinds.items()):
        table.add_row(part, where, str(len(counts)), f"{sum(counts) / 1e6:.3f}")
    return table


def memory(state: Any, frozen: Any, mesh: AbstractMesh) -> Table:
    """Bytes of parameters and moments, whole and per device."""
    judges = state.get("judges", {})
    trees = {
        "trained parameters": state["params"],
        "their moments": state["moments"],
        "frozen parameters": frozen,
        "discriminators": judges.get("params", {}),
        "their moments ": judges.get("moments", {}),
    }
    table = Table(title="memory kept between steps (MiB); a step's activations come on top")
    for column in ("what", "all", "per device"):
        table.add_column(column, justify="left" if column == "what" else "right")
    totals = [0, 0]
    for name, tree in trees.items():
        sizes = (state_bytes(tree), state_bytes(tree, mesh))
        totals = [total + size for total, size in zip(totals, sizes, strict=True)]
        table.add_row(name, *(f"{size / 2**20:.1f}" for size in sizes))
    table.add_row("sum", *(f"{size / 2**20:.1f}" for size in totals), style="bold")
    return table


def state_bytes(tree: Any, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Bytes of a tree, on one device of a mesh or in all."""
    if mesh is None:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    where = sharding.shardings(tree, mesh)
    pieces = jax.tree.map(lambda leaf, s: math.prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, where)
    return sum(jax.tree.leaves(pieces))
