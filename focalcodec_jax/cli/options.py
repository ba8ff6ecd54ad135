"""Options that several commands have, and what they share."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from focalcodec_jax.console import console
from focalcodec_jax.errors import ConfigError

if TYPE_CHECKING:
    from focalcodec_jax.config import DType
    from focalcodec_jax.inference import Codec


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"
    tpu = "tpu"


CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "-c",
        metavar="NAME_OR_FOLDER",
        help="A hub name such as lucadellalib/focalcodec_50hz, or a folder with config.json and model.safetensors. "
        "Without it, the small demo codec in this package.",
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute; auto takes the best there is.")]
DistributedOption = Annotated[
    bool, typer.Option("--distributed", help="One of several processes, as TPU pods, Slurm or Open MPI start them.")
]
CoordinatorOption = Annotated[
    str | None,
    typer.Option(envvar="JAX_COORDINATOR_ADDRESS", help="Elsewhere: HOST:PORT of the first of several processes,"),
]
NumProcessesOption = Annotated[int | None, typer.Option(envvar="JAX_NUM_PROCESSES", help="how many there are,")]
ProcessIdOption = Annotated[int | None, typer.Option(envvar="JAX_PROCESS_ID", help="and which this is, from 0.")]


def load(checkpoint: str | None, device: Device, dtype: "DType | None" = None) -> "Codec":
    """The codec that the command line asks for."""
    from focalcodec_jax.inference import Codec
    from focalcodec_jax.pretrained import DEMO

    if checkpoint is None:
        console.print(
            "[yellow]no --checkpoint given: using the demo codec in this package, which is small and sounds it; "
            "for quality, give --checkpoint lucadellalib/focalcodec_50hz[/]",
            soft_wrap=True,
        )
    with console.status("loading the codec"):
        return Codec.from_pretrained(checkpoint or DEMO, dtype=dtype, device=None if device is Device.auto else device)


def join(distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Become one of several processes, if asked to.

    Raises:
        ConfigError: half of what is needed was given, or the cluster does not say the rest.
    """
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given) and not distributed:
        raise ConfigError(f"of several processes each needs {', '.join(missing)} as well; or --distributed")
    if distributed or not missing:
        import jax

        try:
            jax.distributed.initialize(coordinator, num_processes, process_id)
        except ValueError as error:
            raise ConfigError(
                f"no cluster here says how many processes there are ({error}); give {', '.join(given)}"
            ) from error


def keep_compiled() -> None:
    """Keep compiled programs between runs, where the user has not said where."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "focalcodec_jax" / "compiled"))
