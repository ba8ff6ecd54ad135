"""`focalcodec-jax train run`, `plot` and `export`."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from focalcodec_jax.cli.options import CoordinatorOption, DistributedOption, NumProcessesOption, ProcessIdOption, join
from focalcodec_jax.console import console
from focalcodec_jax.errors import ConfigError, require

app = typer.Typer(no_args_is_help=True, help="Train a codec, look at its curves, and write it out.")


def check_installed() -> None:
    """Refuse to begin without the packages that a plain install lacks."""
    require("training", "train", "array_record", "grain", "librosa", "optax", "orbax", "yaml")


RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")]


@app.command("run")
def run_(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of one in this package, such as smoke.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the configuration.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run; the same command on it goes on where it stopped.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show configuration, mesh, shardings, memory and FLOPs; train nothing.")
    ] = False,
    devices: Annotated[
        int | None, typer.Option(min=1, help="With --dry-run: on so many devices; by default those of this machine.")
    ] = None,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    num_processes: NumProcessesOption = None,
    process_id: ProcessIdOption = None,
) -> None:
    """Train, or go on training."""
    check_installed()
    from focalcodec_jax.train.footprint import show
    from focalcodec_jax.train.loop import run
    from focalcodec_jax.train.run_config import load_config

    resolved = load_config(config, overrides or ())
    if dry_run:
        show(resolved, Console(), devices)
        return
    if run_dir is None:
        raise ConfigError("give --run-dir, a folder for checkpoints and curves")
    join(distributed, coordinator, num_processes, process_id)
    run(resolved, run_dir, console)


@app.command()
def plot(
    runs: RunFolders,
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write, such as curves.png.")],
) -> None:
    """Draw the curves of one or several runs."""
    from focalcodec_jax.train.curves import draw

    draw(runs, output)
    console.print(f"curves in {output}", highlight=False, soft_wrap=True)


@app.command()
def export(
    runs: RunFolders,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the codec to.")],
    step: Annotated[
        int | None, typer.Option(help="Step to take, of a single run; by default the best by validation, or the last.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type to keep weights in: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Join the parts that runs have trained into one codec, in the layout that `--checkpoint` takes."""
    check_installed()
    from focalcodec_jax.train.from_runs import export as write

    for line in write(runs, output, step=step, dtype=dtype):
        console.print(line, highlight=False, soft_wrap=True)


def prepare(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN...",
            help="Folders of recordings, such as a LibriTTS or LibriSpeech tree, or manifests: CSV or JSONL with a "
            "path column, relative to the manifest (and id, if there is one).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the shards and their manifest.jsonl.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Recordings per shard.")] = 1000,
    rate_hz: Annotated[
        int | None, typer.Option(min=1, help="Resample to this rate; without it each recording keeps its own.")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="Take only the recordings whose ids this file lists.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read and encode.")] = os.cpu_count() or 1,
) -> None:
    """Pack recordings into ArrayRecord shards of FLAC, which training reads fast and in any order.

    Run again after an interruption, it goes on with the shards that are missing.
    """
    check_installed()
    from focalcodec_jax.train import prepare as packing

    with console.status("looking through the recordings"):
        shards = packing.plan(inputs, output, per_shard=per_shard, rate_hz=rate_hz, ids=ids)
    hours = 0.0
    columns = (
        TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[hours]:.2f} h"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("recordings", total=sum(len(shard.recordings) for shard in shards), hours=0.0)
        for count, seconds in packing.prepare(shards, workers):
            hours += seconds / 3600
            bar.update(task, advance=count, hours=hours)
    failed = len((output / packing.FAILURES).read_text().splitlines())
    console.print(f"{hours:.2f} h of audio in {len(shards)} shard(s) in {output}", highlight=False, soft_wrap=True)
    if failed:
        console.print(
            f"[yellow]{failed} recordings could not be read: see {output / packing.FAILURES}. To try them again, "
            "delete the .jsonl files of their shards first[/]",
            soft_wrap=True,
        )
        raise typer.Exit(1)
