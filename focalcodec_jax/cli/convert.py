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

app = typer.Typer(no_args_is_help=True, help="Import weights from PyTorch, and compare two checkpoints numerically.")
console = Console()


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, weight file or hub name, such as microsoft/wavlm-large. The checkpoint is a FocalCodec "
            "(v0.0.1 or v0.0.2), or a WavLM-large (transformers or Microsoft layout)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the codec to.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Published model whose structure is used. With a WavLM, it describes the other parts (default: "
            f"{DEFAULT_PRESET}). A FocalCodec weight file without config.json requires it."
        ),
    ] = None,
    layers: Annotated[int, typer.Option(min=1, help="Number of transformer layers of a WavLM to keep.")] = 6,
    seed: Annotated[int, typer.Option(help="Random seed for initializing the parts that a WavLM does not have.")] = 0,
) -> None:
    """Import a checkpoint and write it in the official layout.

    This package and the PyTorch original can load the result.
    """
    imported = import_checkpoint(source, preset=preset, layers=layers, seed=seed)
    save_pretrained(output, imported.model, imported.variables, metadata={"source": source, "layout": imported.layout})
    params = jax.tree.leaves(imported.variables["params"])
    size = sum(math.prod(array.shape) for array in params)
    console.print(f"{source}: {imported.layout} → {output} ({len(params)} tensors, {size / 1e6:.1f} M)", soft_wrap=True)
    for reason, names in imported.dropped.items():
        console.print(f"  left out {len(names)}: {reason}", highlight=False)
    if imported.fresh:
        console.print(f"  randomly initialized, to be trained: {', '.join(imported.fresh)}", highlight=False)


@app.command("verify")
def verify_(
    first: Annotated[str, typer.Argument(metavar="A", help="Folder or hub name of the reference checkpoint.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Folder or hub name of the checkpoint to compare with A.")],
    audio_file: Annotated[
        Path | None,
        typer.Option("--audio", help="Recording to encode and decode. The default is the sample in this package."),
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Run B in the PyTorch original, which needs the packages torch and focalcodec."),
    ] = False,
) -> None:
    """Compare two checkpoints stage by stage. The exit code is 1 if they differ."""
    report = verify(first, second, audio.read(audio_file or SAMPLE_RECORDING), live=live)
    table = Table(title=f"{first} and {second}{' (PyTorch)' if live else ''}", caption="largest error / largest value")
    for column in ("stage", "shape", "given A's input", "end to end"):
        table.add_column(column)
    for parity in report.stages:
        errors = (parity.given_reference_input, parity.end_to_end)
        table.add_row(parity.stage, str(parity.shape), *(f"{error:.1e}" for error in errors))
    console.print(table)
    same = report.tokens - report.differing
    console.print(
        f"tokens: {same} of {report.tokens} equal; {report.near_zero} differ where a latent is within {NEAR_ZERO:g} of "
        f"zero, {report.differing - report.near_zero} elsewhere",
        soft_wrap=True,
    )
    verdict = "agree" if report.agree else "[bold red]differ[/]"
    console.print(f"the two {verdict} (tolerance {TOLERANCE:g} for each stage, exact for tokens)")
    if not report.agree:
        raise typer.Exit(1)
