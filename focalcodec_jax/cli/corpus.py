"""`focalcodec-jax tokenize` and `detokenize`."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from focalcodec_jax.cli.corpus_display import CorpusDisplay, print_plan
from focalcodec_jax.cli.options import (
    DEMO_NOTE,
    CoordinatorOption,
    Device,
    DeviceOption,
    DistributedOption,
    NumProcessesOption,
    ProcessIdOption,
    join_processes,
)
from focalcodec_jax.console import console
from focalcodec_jax.corpus import detokenize as detokenizing, dryrun, tokenize as tokenizing
from focalcodec_jax.corpus.options import DetokenizeOptions, TokenizeOptions, default_workers
from focalcodec_jax.errors import ConfigError
from focalcodec_jax.inference import keep_compiled
from focalcodec_jax.recordings.readers import CONTEXT_SECONDS, WINDOW_SECONDS
from focalcodec_jax.tokens.formats import FORMATS

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Folders, audio files, globs, manifests (CSV, JSONL, Lhotse), WebDataset tars, or ArrayRecord shards "
        "from the command prepare. Each is a path or a URL such as s3://bucket/folder.",
    ),
]


class Precision(StrEnum):
    """Compute dtype of the codec."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class SharedOptions(NamedTuple):
    """The values of `shared_options` that both commands use."""

    fields: dict[str, Any]
    """Fields of `CorpusOptions`, except for `process`."""
    process: Callable[[], tuple[int, int]]
    """Joins the other processes, if there are any, and returns the index of this process and their number."""


def shared_options(
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="NAME_OR_FOLDER",
            help="Hub name or folder of the codec. By default, tokenize uses the demo codec in this package, and "
            "detokenize uses the codec that made the tokens.",
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Do part I of N of the work, counted from 0. For example, 0/4 is the first of four."
        ),
    ] = None,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    num_processes: NumProcessesOption = None,
    process_id: ProcessIdOption = None,
    window: Annotated[
        int, typer.Option(min=1, help="Window length in seconds. Longer recordings are split into overlapping windows.")
    ] = WINDOW_SECONDS,
    context: Annotated[
        int, typer.Option(min=1, help="Seconds of context at each end of a window. Their results are dropped.")
    ] = CONTEXT_SECONDS,
    batch_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Maximum seconds of audio per device and batch. Smaller values need less memory. The default "
            "depends on the device.",
        ),
    ] = None,
) -> SharedOptions:
    """Options that both commands have."""
    fields = {
        "checkpoint": checkpoint,
        "device": None if device is Device.auto else device.value,
        "window": window,
        "context": context,
        "batch_seconds": batch_seconds,
    }
    return SharedOptions(fields, lambda: _process(shard, distributed, coordinator, num_processes, process_id))


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `shared_options`. It receives their result as `shared`."""
    own, shared = inspect.signature(command).parameters, inspect.signature(shared_options).parameters

    def wrapper(**values: Any) -> None:
        own_values = {name: value for name, value in values.items() if name in own}
        shared_values = {name: value for name, value in values.items() if name in shared}
        command(**own_values, shared=shared_options(**shared_values))

    required = [one for one in own.values() if one.default is one.empty and one.name != "shared"]
    optional = [one for one in own.values() if one.default is not one.empty]
    parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in (*required, *shared.values(), *optional)]
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__annotations__ = {one.name: one.annotation for one in parameters}
    wrapper.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess] - read by typer
    return wrapper


@with_shared_options
def tokenize(
    inputs: Inputs,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder or URL for the data set, new or unfinished."),
    ],
    shared: SharedOptions,
    dtype: Annotated[
        Precision, typer.Option(help="Compute dtype of the codec. bfloat16 is faster and changes some tokens.")
    ] = Precision.float32,
    format: Annotated[
        str, typer.Option(metavar=f"[{'|'.join(FORMATS)}]", help="File format of the data set.")
    ] = "parquet",
    workers: Annotated[
        int, typer.Option(min=0, help="Number of processes that read audio. 0 reads in the main process.")
    ] = default_workers(),
    shard_hours: Annotated[
        float | None,
        typer.Option(min=0.001, help="Hours of audio per shard. The default is 0.5 to 100, depending on the corpus."),
    ] = None,
    check: Annotated[
        int, typer.Option(min=0, help="Number of recordings to encode again at the end, to count tokens that differ.")
    ] = 8,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first recording that cannot be read.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Process shards with unreadable recordings again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print hours, shards, batches and padding, without computing tokens.")
    ] = False,
) -> None:
    """Convert a corpus of speech to a data set of tokens.

    The same command continues an interrupted run. Recordings that cannot be read are listed in failures.jsonl, and the
    exit code is then 1.
    """
    options = TokenizeOptions(
        **shared.fields,
        process=(0, 1) if dry_run else shared.process(),
        workers=workers,
        dtype=dtype.value,
        format=format,
        shard_hours=shard_hours,
        check=check,
        strict=strict,
        retry_failed=retry_failed,
    )
    if dry_run:
        with CorpusDisplay(console) as display:
            summary = dryrun.plan_summary(inputs, options, progress=display)
        print_plan(summary, Console())
        return
    keep_compiled()
    note = DEMO_NOTE if options.checkpoint is None else None
    with CorpusDisplay(console, codec_note=note) as display:
        report = tokenizing.tokenize(inputs, output, options, progress=display)
    display.tokenized(report)
    if report.failures:
        raise typer.Exit(1)


@with_shared_options
def detokenize(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Folder or URL of a data set that tokenize has finished.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder or URL for the audio. An interrupted run is continued."
        ),
    ],
    shared: SharedOptions,
    suffix: Annotated[
        str, typer.Option(help="File extension of the audio files, such as .wav. It selects their format.")
    ] = ".flac",
    workers: Annotated[int, typer.Option(min=1, help="Number of threads that write audio.")] = default_workers(),
) -> None:
    """Convert a data set of tokens back to audio. Each recording becomes a file that is named after its id.

    Without --checkpoint, the codec that made the tokens is used. The same command continues an interrupted run.
    """
    options = DetokenizeOptions(**shared.fields, process=shared.process(), suffix=suffix, workers=workers)
    keep_compiled()
    with CorpusDisplay(console) as display:
        report = detokenizing.detokenize(dataset, output, options, progress=display)
    display.detokenized(report)
    if report.failures:
        raise typer.Exit(1)


def _process(
    shard: str | None, distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[int, int]:
    """Index of this process, and the number of processes.

    Raises:
        ConfigError: --shard is malformed.
    """
    if shard is not None:
        index, _, count = shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ConfigError(f"--shard is {shard!r}; the first of four processes is 0/4, the last 3/4")
        return int(index), int(count)
    join_processes(distributed, coordinator, num_processes, process_id)
    import jax

    if not jax.distributed.is_initialized():
        return 0, 1
    process = jax.process_index(), jax.process_count()
    jax.distributed.shutdown()  # the processes work independently, so that they do not wait for each other at the end
    return process
