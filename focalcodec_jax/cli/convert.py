"""`focalcodec-jax convert import` and `focalcodec-jax convert verify`."""

import math
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.table import Table

from focalcodec_jax.convert.importing import DEFAULT_PRESET, import_checkpoint
from focalcodec_jax.convert.verifying import NEAR_ZERO, TOLERANCE, verify
from focalcodec_jax.files import SAMPLE_RECORDING
from focalcodec_jax.pretrained import save_pretrained
from focalcodec_jax.recordings import audio

app = typer.Typer(no_args_is_help=True, help="Bring weights in from PyTorch, and check that they compute the same.")
console = Console()


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="A FocalCodec (v0.0.1 or v0.0.2) or a WavLM-large (transformers or Microsoft layout): "
            "a folder, a weight file, or a hub name such as microsoft/wavlm-large."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the codec to.")],
    preset: Annotated[
        str | None, typer.Option(help=f"For WavLM: the model to build around it (default {DEFAULT_PRESET}).")
    ] = None,
    layers: Annotated[int, typer.Option(min=1, help="For WavLM: how many transformer layers to keep.")] = 6,
    seed: Annotated[int, typer.Option(help="For WavLM: seed of the parts that are freshly initialised.")] = 0,
) -> None:
    """Import a checkpoint and write it in the official layout, which this package and PyTorch both load."""
    imported = import_checkpoint(source, preset=preset, layers=layers, seed=seed)
    save_pretrained(output, imported.model, imported.variables, metadata={"source": source, "layout": imported.layout})
    params = jax.tree.leaves(imported.variables["params"])
    size = sum(math.prod(array.shape) for array in params)
    console.print(f"{source}: {imported.layout} → {output} ({len(params)} tensors, {size / 1e6:.1f} M)", soft_wrap=True)
    for reason, names in imported.dropped.items():
        console.print(f"  left out {len(names)}: {reason}", highlight=False)
    if imported.fresh:
        console.print(f"  freshly initialised, to be trained: {', '.join(imported.fresh)}", highlight=False)


@app.command("verify")
def verify_(
    first: Annotated[str, typer.Argument(metavar="A", help="A checkpoint folder or hub name: the reference.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The one to compare; with --live, run by PyTorch.")],
    audio_file: Annotated[
        Path | None, typer.Option("--audio", help="Speech to compare on; a sample in this package by default.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Run B in the PyTorch original (needs torch and focalcodec).")
    ] = False,
) -> None:
    """Compare two checkpoints stage by stage. Exit code 1 when they differ."""
    report = verify(first, second, audio.read(audio_file or SAMPLE_RECORDING), live=live)
    table = Table(
        title=f"{first} beside {second}{' (PyTorch)' if live else ''}", caption="largest error / largest value"
    )
    for column in ("stage", "shape", "fed with A's input", "end to end"):
        table.add_column(column)
    for error in report.stages:
        table.add_row(error.stage, str(error.shape), f"{error.alone:.1e}", f"{error.along:.1e}")
    console.print(table)
    same = report.tokens - report.differing
    console.print(
        f"tokens: {same} of {report.tokens} equal; {report.near_zero} differ by a latent within {NEAR_ZERO:g} of zero, "
        f"{report.differing - report.near_zero} otherwise",
        soft_wrap=True,
    )
    verdict = "agree" if report.agree else "[bold red]differ[/]"
    console.print(f"the two {verdict} (stages to {TOLERANCE:g}, tokens exactly)")
    if not report.agree:
        raise typer.Exit(1)
