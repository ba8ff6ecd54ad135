"""`focalcodec-jax train run`, `plot` and `export`, and `focalcodec-jax prepare`."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from focalcodec_jax.cli.options import (
    CoordinatorOption,
    DistributedOption,
    NumProcessesOption,
    ProcessIdOption,
    join_processes,
)
from focalcodec_jax.console import console
from focalcodec_jax.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Train a codec, plot the losses, and export the codec.")
RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of training runs.")]


@app.command("run")
def run_(
    config: Annotated[
        str, typer.Argument(help="YAML file, or the name of a configuration in this package, such as smoke.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to keys of the configuration, such as steps=100."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints and metrics. The same command resumes a run that was stopped."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show configuration, mesh, shardings, memory and FLOPs, without training."),
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of devices for --dry-run to plan for. The default is the number on this machine."
        ),
    ] = None,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    num_processes: NumProcessesOption = None,
    process_id: ProcessIdOption = None,
) -> None:
    """Start a training run, or resume it."""
    from focalcodec_jax import train

    resolved = train.load_config(config, overrides or ())
    if dry_run:
        _dry_run(resolved, devices)
        return
    if run_dir is None:
        raise ConfigError("a run needs a folder for checkpoints and curves", parameter="run_dir")
    join_processes(distributed, coordinator, num_processes, process_id)
    from focalcodec_jax.cli.train_progress import ProgressDisplay

    with ProgressDisplay(console) as display:
        train.run(resolved, run_dir, progress=display)


def _dry_run(config, devices: int | None) -> None:
    import jax

    from focalcodec_jax import train
    from focalcodec_jax.cli.train_progress import show_footprint

    kind = jax.devices()[0].device_kind if devices is None else None
    show_footprint(train.dry_run(config, devices), Console(), kind)


@app.command()
def plot(
    runs: RunFolders,
    output: Annotated[Path, typer.Option("--output", "-o", help="Image to write, such as curves.png.")],
) -> None:
    """Plot the losses and other metrics of one or several runs."""
    from focalcodec_jax import train

    train.draw_curves(runs, output)
    console.print(f"curves in {output}", highlight=False, soft_wrap=True)


@app.command()
def export(
    runs: RunFolders,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the codec to.")],
    step: Annotated[
        int | None,
        typer.Option(
            help="Step of the checkpoint to export, for a single run. The default is the checkpoint with the best "
            "validation loss, or the newest one if the run has no validation."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Data type of the exported weights: float32, bfloat16 or float16.")
    ] = "float32",
) -> None:
    """Combine the parts that training runs have trained into one codec. Other commands load it with `--checkpoint`."""
    from focalcodec_jax import train

    report = train.codec_from_runs(runs, output, step=step, dtype=dtype)
    lines = [f"{', '.join(item.parts)}: step {item.step} of {item.run}" for item in report.taken]
    for line in (*lines, f"codec in {report.output}"):
        console.print(line, highlight=False, soft_wrap=True)


def prepare(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN...",
            help="Local folders of recordings, such as LibriTTS/dev-clean, or CSV or JSONL manifests. A manifest has a "
            "column path, relative to the manifest, and optionally a column id.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the shards and their manifest.jsonl.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Number of recordings per shard.")] = 1000,
    rate_hz: Annotated[
        int | None,
        typer.Option(min=1, help="Sample rate in Hz to resample to. By default, recordings keep their rate."),
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(help="Text file with the ids of the recordings to include, one per line.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Number of processes that read and encode audio.")
    ] = os.cpu_count() or 1,
) -> None:
    """Pack recordings into ArrayRecord shards of FLAC, from which training reads fast and in any order.

    After an interruption, the same command resumes with the missing shards.
    """
    from focalcodec_jax import train

    options = train.PrepareOptions(per_shard=per_shard, rate_hz=rate_hz, ids=ids, workers=workers)
    from focalcodec_jax.cli.train_progress import ProgressDisplay

    with ProgressDisplay(console) as display:
        report = train.prepare(inputs, output, options, progress=display)
    console.print(
        f"{report.hours:.2f} h of audio in {report.shards} shard(s) in {output}", highlight=False, soft_wrap=True
    )
    if report.failed:
        console.print(
            f"[yellow]{report.failed} recordings could not be read: see {report.failures}. To try them again, "
            "delete the .jsonl files of their shards first[/]",
            soft_wrap=True,
        )
        raise typer.Exit(1)
