"""Run by test_sharding.py in processes of its own: the first training step on some meshes.

    python -m support.fingerprint DATA STAGE MESH...        MESH = data,fsdp,tensor

Prints one JSON object: for each mesh every scalar of the first step, bytes of state per device, and collectives.
"""

import json
import os
import re
import sys

import jax
import numpy as np

from focalcodec_jax.nn.codec import FocalCodec
from focalcodec_jax.train import footprint as dryrun, sharding
from focalcodec_jax.train.data import Pipeline, select
from focalcodec_jax.train.loop import Compiled
from focalcodec_jax.train.start import codec_config, fresh
from focalcodec_jax.train.step import Trainer
from support.training import tiny


def first_step(data: str, stage: str, mesh_sizes: str) -> dict:
    sizes = dict(zip(sharding.AXES, map(int, mesh_sizes.split(",")), strict=True))
    config = tiny(stage, mesh=sizes)
    mesh = sharding.make_mesh(config.mesh, config.data.batch_size)
    model = FocalCodec(codec_config(config.model))
    params = fresh(config, model, mesh)
    trained, frozen = config.parted(params)
    compiled = Compiled(Trainer(config, model), mesh, trained, frozen)
    state = compiled.init(trained, jax.random.key(1))
    if "judges" in state:
        # Fresh discriminators hardly hear a difference between real and fake: their gradient is what is left of two
        # that cancel, and Adam's first step takes its sign. Louder ones have a gradient worth comparing.
        louder = jax.tree.map(lambda x: 8 * x, state["judges"]["params"])
        state["judges"]["params"] = jax.device_put(louder, jax.tree.map(lambda x: x.sharding, louder))
    pipeline = Pipeline(
        select([data], config.data, "train")[0], config.data, sharding.batch_sharding(mesh), seed=0, align=320
    )
    batch, _ = next(pipeline.batches(0, 1, workers=0))
    program = compiled.step.lower(state, frozen, batch, np.float32(1e-3)).compile()
    found = {
        "bytes": dryrun.state_bytes({"params": state["params"], "moments": state["moments"]}, mesh),
        "all_bytes": dryrun.state_bytes({"params": state["params"], "moments": state["moments"]}),
        "collectives": sorted(
            set(re.findall(r"(all-reduce|all-gather|reduce-scatter)(?:-start)?\(", program.as_text()))
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
