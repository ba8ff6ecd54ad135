"""Full-size steps of training and tokenizing, compiled ahead of time for TPU pods. No TPU is needed.

    pip install -e ".[train,tpu]"
    JAX_PLATFORMS=cpu python benchmarks/pods.py -o pods.json

For each stage and topology, this prints memory per chip, operations, and the bytes that collectives move, as XLA's TPU
compiler plans them. The batch has two recordings per chip, so equal numbers per chip from 8 to 256 chips show weak
scaling. Nothing is executed, so the time of a step is unknown.

The stage `tokenizer` is the program of `focalcodec-jax tokenize` for one length of recordings (`--seconds`). It has
120 s of audio per chip and uses the data axis only.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from focalcodec_jax import FocalCodec
from focalcodec_jax.corpus.engine import batch_shape
from focalcodec_jax.flops import count
from focalcodec_jax.inference import BATCH_SECONDS, Axis
from focalcodec_jax.nn.codec import initialize
from focalcodec_jax.pretrained import structure
from focalcodec_jax.train import sharding, step_flops
from focalcodec_jax.train.footprint import abstract_run
from focalcodec_jax.train.programs import Programs
from focalcodec_jax.train.run_config import TrainConfig, from_dict
from focalcodec_jax.train.stages import Batch

TOPOLOGIES = ("v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16")
PER_CHIP = 2
CHIP_GIB = 16.0
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}


def configuration(stage: str, chips: int, fsdp: int, seconds: float) -> TrainConfig:
    return from_dict(
        {
            "stage": stage,
            "model": {"preset": "focalcodec_50hz", "dtype": "bfloat16"},
            "data": {"batch_size": PER_CHIP * chips, "max_seconds": seconds},
            "mesh": {"fsdp": fsdp},
            "steps": 1,
        }
    )


def compile_step(config: TrainConfig, devices: list, seconds: float) -> dict[str, Any]:
    """Compile a stage's step for these devices; returns its memory, operations and collectives."""
    mesh = sharding.make_mesh(config.mesh, config.data.batch_size, devices)
    trainer, state, frozen = abstract_run(config)
    programs = Programs(trainer, mesh, state.params, frozen)
    samples = round(seconds * 16_000)
    split = sharding.batch_sharding(mesh)

    def shape(*size: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(size, dtype, sharding=split)

    rows = config.data.batch_size
    batch = Batch(shape(rows, samples), shape(rows, dtype=jnp.int32), shape(rows), shape(rows, dtype=jnp.int32))
    where = sharding.shardings(frozen, mesh)
    frozen = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), frozen, where)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    started = time.monotonic()
    program = programs.step.lower(programs.target, frozen, batch, rate).compile()
    memory = program.memory_analysis()
    step = step_flops.of_step(trainer, state, frozen, batch)
    moved = collectives(program.as_text())
    return {
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "batch": rows,
        "seconds": seconds,
        "compile_seconds": round(time.monotonic() - started, 1),
        "arguments_gib": memory.argument_size_in_bytes / 2**30,
        "temporary_gib": memory.temp_size_in_bytes / 2**30,
        "tflop_per_chip": step / len(devices) / 1e12,
        "collectives": {kind: {"count": count, "mib": size / 2**20} for kind, (count, size) in moved.items()},
    }


def compile_tokenizer(model: FocalCodec, devices: list, seconds: float) -> dict[str, Any]:
    """Compile the program from audio to tokens for these devices; returns its memory, operations and collectives."""
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    samples = round(seconds * 16_000)
    axis = Axis(model.config.encoder.samples_per_frame, 16_000)
    rows, samples = batch_shape(axis, samples, max(samples, 60 * 16_000), BATCH_SECONDS["tpu"])
    rows *= len(devices)
    variables = jax.eval_shape(lambda key: initialize(model, key), jax.random.key(0))
    variables = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), variables)
    sig = jax.ShapeDtypeStruct((rows, samples), jnp.float32, sharding=split)
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=split)

    def step(variables: Any, sig: jax.Array, lengths: jax.Array) -> Any:
        return model.apply(variables, sig, lengths, method="sig_to_toks")

    started = time.monotonic()
    program = jax.jit(step).lower(variables, sig, lengths).compile()
    memory = program.memory_analysis()
    assert memory is not None
    moved = collectives(program.as_text())
    return {
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "batch": rows,
        "seconds": samples / 16_000,
        "compile_seconds": round(time.monotonic() - started, 1),
        "arguments_gib": memory.argument_size_in_bytes / 2**30,
        "temporary_gib": memory.temp_size_in_bytes / 2**30,
        "tflop_per_chip": count(step, variables, sig, lengths) / len(devices) / 1e12,
        "collectives": {kind: {"count": count, "mib": size / 2**20} for kind, (count, size) in moved.items()},
    }


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Number of collectives of each kind in a compiled program, and the bytes gathered or reduced on one chip.

    XLA for TPUs writes a reduce-scatter as a fused computation of that name around an all-reduce. It writes a gather
    that overlaps several operations as one fused computation for each of them. These share a channel id.
    """
    found: dict[str, tuple[int, int]] = {}
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    computation, seen = "", set()
    for line in program.splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line.split("(")[0]
        match = re.search(rf" = (.+?) ({kinds})(-start)?\(", line)
        if match is None:
            continue
        shapes, kind, asynchronous = match.groups()
        channel = re.search(r"channel_id=\d+", line)
        if channel and "fus" in computation:
            if (kind, channel.group()) in seen:
                continue
            seen.add((kind, channel.group()))
        sizes = [
            _BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        ]
        if asynchronous and kind == "all-gather":  # The result holds the operands, too.
            sizes = sizes[len(sizes) // 2 :]
        kind = "reduce-scatter" if computation.startswith("%all-reduce-scatter") else kind
        count, before = found.get(kind, (0, 0))
        found[kind] = (count + 1, before + sum(sizes))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", action="append", help=f"such as v5e:4x4; default: {', '.join(TOPOLOGIES)}")
    parser.add_argument("--stage", action="append", help="quantizer, decoder or tokenizer; default: all")
    parser.add_argument("--fsdp", type=int, action="append", help="size of the fsdp axis; default: 1 and 8")
    parser.add_argument("--dtype", default="bfloat16", help="compute dtype of the tokenizer")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each recording")
    parser.add_argument("-o", "--output", type=Path, help="also write the numbers as JSON")
    arguments = parser.parse_args()

    rows = []
    table = Table(title=f"{PER_CHIP} recordings of {arguments.seconds:g} s a chip, bfloat16")
    for column in ("stage", "topology", "mesh", "GiB kept", "GiB working", "TFLOP a chip", "collectives", "compile s"):
        table.add_column(column)
    for topology in arguments.topology or TOPOLOGIES:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
        for stage in arguments.stage or ("quantizer", "decoder", "tokenizer"):
            for fsdp in (arguments.fsdp or (1, 8)) if stage != "tokenizer" else (1,):
                if stage == "tokenizer":
                    found = compile_tokenizer(
                        FocalCodec(structure("focalcodec_50hz", dtype=arguments.dtype)), devices, arguments.seconds
                    )
                else:
                    config = configuration(stage, len(devices), fsdp, arguments.seconds)
                    found = compile_step(config, devices, arguments.seconds)
                row = {"stage": stage, "topology": topology, **found}
                rows.append(row)
                moved = ", ".join(f"{v['count']} {k} {v['mib']:.0f} MiB" for k, v in row["collectives"].items())
                mesh = " × ".join(map(str, row["mesh"].values()))
                table.add_row(
                    stage, topology, mesh, f"{row['arguments_gib']:.2f}", f"{row['temporary_gib']:.2f}",
                    f"{row['tflop_per_chip']:.3f}", moved, f"{row['compile_seconds']:.0f}",
                )  # fmt: skip
                Console(stderr=True).print(json.dumps(row))
                if arguments.output:
                    arguments.output.write_text(json.dumps(rows, indent=2) + "\n")
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
