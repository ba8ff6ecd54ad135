"""The first training step on several meshes. `test_sharding.py` runs this in separate processes.

    python -m support.fingerprint DATA STAGE MESH...        MESH = data,fsdp,tensor

Prints one JSON object. For each mesh it holds every scalar of the first step, bytes per device, and collectives.
"""

import dataclasses
import json
import os
import re
import sys

import jax
import numpy as np

from focalcodec_jax.nn.codec import FocalCodec
from focalcodec_jax.train import sharding
from focalcodec_jax.train.data import Pipeline, select
from focalcodec_jax.train.footprint import state_bytes
from focalcodec_jax.train.programs import Programs
from focalcodec_jax.train.start import codec_config, random_params
from focalcodec_jax.train.step import Trainer
from support.training import tiny


def first_step(data: str, stage: str, mesh_sizes: str, devices: list | None = None) -> dict:
    """Scalars, memory and collectives of one step; on all devices by default."""
    sizes = dict(zip(sharding.AXES, map(int, mesh_sizes.split(",")), strict=True))
    config = tiny(stage, mesh=sizes)
    mesh = sharding.make_mesh(config.mesh, config.data.batch_size, devices)
    model = FocalCodec(codec_config(config.model))
    trained, frozen = config.split_params(random_params(config, model, mesh))
    programs = Programs(Trainer(config, model), mesh, trained, frozen)
    state = programs.init(trained, jax.random.key(1))
    if state.discriminators is not None:
        # Fresh discriminators hardly tell real from fake. Their gradient is then the rounding error of two terms that
        # cancel, and Adam's first step takes its sign. Larger weights give a gradient that can be compared.
        larger = jax.tree.map(lambda x: 8 * x, state.discriminators.params)
        larger = jax.device_put(larger, jax.tree.map(lambda x: x.sharding, larger))
        state = dataclasses.replace(state, discriminators=dataclasses.replace(state.discriminators, params=larger))
    pipeline = Pipeline(
        select([data], config.data, "train")[0], config.data, sharding.batch_sharding(mesh), seed=0, align=320
    )
    batch, _ = next(pipeline.batches(0, 1, workers=0))
    program = programs.step.lower(state, frozen, batch, np.float32(1e-3)).compile()
    kept = {"params": state.params, "moments": state.moments}
    found = {
        "bytes": state_bytes(kept, mesh),
        "all_bytes": state_bytes(kept),
        "collectives": sorted(
            set(re.findall(r"(all-reduce|all-gather|reduce-scatter)(?:-start)?\(", program.as_text() or ""))
        ),
    }
    state, metrics = program(state, frozen, batch, np.float32(1e-3))
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards[:1])
    counts = metrics.pop("counts", None)
    metrics = {name: float(value) for name, value in metrics.items()}
    if counts is not None:
        metrics["codes_used"] = int((np.asarray(counts) > 0).sum())
    return {"metrics": metrics, "held_bytes": held, **found}


if __name__ == "__main__":
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(None, int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"]))
    data, stage, *meshes = sys.argv[1:]
    found = {mesh: first_step(data, stage, mesh) for mesh in meshes}
    if jax.process_index() == 0:
        print(json.dumps(found))
