"""`focalcodec-jax export-stablehlo`."""

from pathlib import Path
from typing import Annotated

import typer

from focalcodec_jax.cli.options import CheckpointOption
from focalcodec_jax.console import console
from focalcodec_jax.export.programs import PLATFORMS, stablehlo
from focalcodec_jax.pretrained import DEMO


def export_stablehlo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write to. It is new, empty, or has an earlier export.")
    ],
    checkpoint: CheckpointOption = None,
    platforms: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME", help="Platforms that the programs can run on. This machine need not have them."
        ),
    ] = ",".join(PLATFORMS),
    dtype: Annotated[
        str, typer.Option(help="Compute dtype: float32 or bfloat16. bfloat16 is faster and changes some tokens.")
    ] = "float32",
) -> None:
    """Export a codec as StableHLO programs, with a loader that needs only jax and flatbuffers."""
    names = tuple(dict.fromkeys(platforms.replace(",", " ").split()))
    with console.status("exporting"):
        report = stablehlo(checkpoint or DEMO, output, names, dtype=dtype)
    text = f"{report.checkpoint} for {', '.join(report.platforms)} in {report.folder}"
    console.print(text, highlight=False, soft_wrap=True, markup=False)
