"""`focalcodec-jax export-stablehlo`."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from focalcodec_jax.cli.options import CheckpointOption
from focalcodec_jax.config import DType
from focalcodec_jax.console import console
from focalcodec_jax.errors import ConfigError
from focalcodec_jax.export.programs import PLATFORMS, check_folder, check_platforms, export_stablehlo
from focalcodec_jax.pretrained import DEMO, load_pretrained


def export_stablehlo_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to: new, empty, or an old export.")],
    checkpoint: CheckpointOption = None,
    platforms: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="What the programs can run on; none of it need be here.")
    ] = ",".join(PLATFORMS),
    dtype: Annotated[
        str, typer.Option(help="Type to compute in, float32 or bfloat16, which is faster and changes some tokens.")
    ] = "float32",
) -> None:
    """Write a codec as StableHLO programs, with a loader that needs jax and flatbuffers alone."""
    wanted, name = list(dict.fromkeys(platforms.replace(",", " ").split())), checkpoint or DEMO
    check_platforms(wanted)
    check_folder(output)
    if dtype not in get_args(DType):
        raise ConfigError(f"no codec computes in {dtype!r}; give {' or '.join(get_args(DType))}")
    with console.status("exporting"):
        model, variables = load_pretrained(name, dtype=cast(DType, dtype))
        export_stablehlo(model, variables, output, wanted, checkpoint=name)
    console.print(f"{name} for {', '.join(wanted)} in {output}", highlight=False, soft_wrap=True, markup=False)
