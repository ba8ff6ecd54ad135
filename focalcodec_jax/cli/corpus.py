"""`focalcodec-jax tokenize` and `detokenize`."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from focalcodec_jax.cli.options import (
    CheckpointOption,
    CoordinatorOption,
    Device,
    DeviceOption,
    DistributedOption,
    NumProcessesOption,
    ProcessIdOption,
    join,
    keep_compiled,
    load,
)
from focalcodec_jax.console import console
from focalcodec_jax.corpus import journal
from focalcodec_jax.corpus.engine import Engine
from focalcodec_jax.errors import CheckpointError, ConfigError, require
from focalcodec_jax.inference import default_batch_seconds, local_devices
from focalcodec_jax.pretrained import DEMO, checkpoint_folder, structure, weights_hash
from focalcodec_jax.recordings import audio, sources
from focalcodec_jax.recordings.readers import Readers
from focalcodec_jax.recordings.windows import CONTEXT_SECONDS, WINDOW_SECONDS, windows as find_windows
from focalcodec_jax.tokens.dataset import Blocks
from focalcodec_jax.tokens.formats import Format


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

ShardOption = Annotated[
    str | None, typer.Option(metavar="I/N", help="This is process I, from 0, of N that share the work.")
]
WindowOption = Annotated[int, typer.Option(min=1, help="Seconds; what is longer goes through in windows.")]
ContextOption = Annotated[int, typer.Option(min=1, help="Seconds at each end of a window that only inform it.")]
BatchSecondsOption = Annotated[
    float | None, typer.Option(min=0.1, help="Most audio that one device is given at once; less needs less memory.")
]


def tokenize(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Folders, audio files, globs, manifests (CSV, JSONL, Lhotse's), ArrayRecord shards of prepare, "
            "WebDataset tars; paths or URLs such as s3://bucket/folder.",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Folder or URL of the data set; goes on with it.")
    ],
    checkpoint: CheckpointOption = None,
    device: DeviceOption = Device.auto,
    dtype: Annotated[Precision, typer.Option(help="bfloat16 is faster, and changes some tokens.")] = Precision.float32,
    format: Annotated[Format, typer.Option(help="Parquet, ArrayRecord, JSONL, or a .npy file each.")] = Format.parquet,
    shard: ShardOption = None,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    num_processes: NumProcessesOption = None,
    process_id: ProcessIdOption = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read audio.")] = min(16, CPUS),
    window: WindowOption = WINDOW_SECONDS,
    context: ContextOption = CONTEXT_SECONDS,
    batch_seconds: BatchSecondsOption = None,
    shard_hours: Annotated[
        float | None, typer.Option(min=0.001, help="Audio in a file of the data set; a thousandth of it by default.")
    ] = None,
    check: Annotated[int, typer.Option(min=0, help="Recordings to encode once more at the end, one by one.")] = 8,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first recording that cannot be read.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Make shards again in which recordings failed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done: hours, shards, batches, padding.")
    ] = False,
) -> None:
    """Turn a corpus of speech into a data set of tokens.

    Run again after an interruption, it goes on with what is missing. Recordings that cannot be read are listed in
    failures.jsonl, and the exit code is then 1.
    """
    from focalcodec_jax.corpus import dryrun, tokenize as tokenizing

    if format is Format.array_record:
        require("writing ArrayRecord shards", "train", "array_record")
    name = checkpoint or DEMO
    config = structure(name, dtype=dtype.value)
    windows = find_windows(config, window, context)
    with console.status("looking through the recordings"):
        recordings = sources.listed(inputs)
    if dry_run:
        kind = None if device is Device.auto else device.value
        seconds = batch_seconds or default_batch_seconds(local_devices(kind))
        dryrun.show(recordings, journal.shards(recordings, shard_hours), config, windows, seconds)
        return
    process = _process(shard, distributed, coordinator, num_processes, process_id)
    task = tokenizing.Task(name, config, windows, format, shard_hours, process, retry_failed)
    plan = tokenizing.Plan(output, recordings, task)
    tokenizer = None
    if plan.todo:
        keep_compiled()
        codec = load(checkpoint, device, dtype.value)
        engine = Engine(codec, "sig_to_toks", codec.samples, windows.samples, batch_seconds)
        tokenizer = tokenizing.Tokenizer(plan, engine, Readers(workers, windows), strict=strict, check=check)
        tokenizer.run(console)
    failures = plan.conclude(console)
    if tokenizer is not None:
        tokenizer.report(console)
    if failures:
        raise typer.Exit(1)


def detokenize(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder or URL that tokenize wrote.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Folder or URL of the audio; goes on with it.")
    ],
    checkpoint: CheckpointOption = None,
    device: DeviceOption = Device.auto,
    suffix: Annotated[str, typer.Option(help="Ending of the files, which says their format.")] = ".flac",
    shard: ShardOption = None,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    num_processes: NumProcessesOption = None,
    process_id: ProcessIdOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that write audio.")] = min(16, CPUS),
    window: WindowOption = WINDOW_SECONDS,
    context: ContextOption = CONTEXT_SECONDS,
    batch_seconds: BatchSecondsOption = None,
) -> None:
    """Turn a data set of tokens back into audio: a file for each recording, by its id.

    Takes the checkpoint that made the tokens, unless another is given. Run again after an interruption, it goes on.
    """
    from focalcodec_jax.corpus.detokenize import Detokenizer, Output

    audio.check_name(Path(f"a{suffix}"))
    blocks = Blocks(dataset)
    name = checkpoint or str(blocks.info["checkpoint"])
    config = structure(name)
    if config.quantizer.codebook_size != blocks.codebook_size:
        raise CheckpointError(
            f"{name} has a codebook of {config.quantizer.codebook_size} codes, the tokens one of {blocks.codebook_size}"
        )
    plan = {"data set": blocks.digest, "checkpoint": weights_hash(checkpoint_folder(name)), "suffix": suffix}
    index, of = _process(shard, distributed, coordinator, num_processes, process_id)
    target = Output(output, plan)
    done = target.done()
    todo = [block for block in range(index, len(blocks), of) if block not in done]
    if todo:
        keep_compiled()
        codec = load(name, device)
        windows = find_windows(config, window, context)
        longest = round(windows.seconds * config.token_rate_hz)
        engine = Engine(codec, "toks_to_sig", codec.tokens, longest, batch_seconds)
        Detokenizer(blocks, target, engine, windows, suffix, workers).run(todo, console)
    if target.conclude(len(blocks), console):
        raise typer.Exit(1)


def _process(
    shard: str | None, distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[int, int]:
    """Which process this is, and of how many.

    Raises:
        ConfigError: --shard is not such as 0/4.
    """
    if shard is not None:
        index, _, of = shard.partition("/")
        if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
            raise ConfigError(f"--shard is {shard!r}; the first of four processes is 0/4, the last 3/4")
        return int(index), int(of)
    join(distributed, coordinator, num_processes, process_id)
    import jax

    if not jax.distributed.is_initialized():
        return 0, 1
    process = jax.process_index(), jax.process_count()
    jax.distributed.shutdown()  # each works by itself from here on, so that none ends with another
    return process
