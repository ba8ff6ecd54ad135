"""Options that several commands share."""

from enum import StrEnum
from typing import Annotated

import typer

from focalcodec_jax.errors import ConfigError

DEMO_NOTE = (
    "no --checkpoint given: using the demo codec in this package, a small model of low quality; for good quality, give "
    "--checkpoint lucadellalib/focalcodec_50hz"
)
"""Printed when a command uses the demo codec."""


class Device(StrEnum):
    """Kind of device to compute on."""

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
        help="Hub name of the codec, such as lucadellalib/focalcodec_50hz, or a folder with config.json and "
        "model.safetensors. The default is the small demo codec in this package.",
    ),
]
DeviceOption = Annotated[
    Device, typer.Option(help="Kind of device to compute on. auto selects a TPU or GPU if there is one.")
]
DistributedOption = Annotated[
    bool,
    typer.Option(
        "--distributed", help="Run as one of several processes. A TPU pod, Slurm or Open MPI provides their numbers."
    ),
]
CoordinatorOption = Annotated[
    str | None,
    typer.Option(
        envvar="JAX_COORDINATOR_ADDRESS",
        help="HOST:PORT of the first of several processes, if no cluster provides it.",
    ),
]
NumProcessesOption = Annotated[
    int | None, typer.Option(envvar="JAX_NUM_PROCESSES", help="Number of processes, with --coordinator.")
]
ProcessIdOption = Annotated[
    int | None, typer.Option(envvar="JAX_PROCESS_ID", help="Index of this process from 0, with --coordinator.")
]


def join_processes(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Initialize `jax.distributed`, if the options ask for several processes.

    Raises:
        ConfigError: An option is missing, or the cluster does not provide the number of processes.
    """
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given) and not distributed:
        raise ConfigError(f"each of several processes needs {', '.join(missing)} as well, or --distributed")
    if distributed or not missing:
        import jax

        try:
            jax.distributed.initialize(coordinator, num_processes, process_id)
        except ValueError as error:
            raise ConfigError(
                f"no cluster provides the number of processes ({error}); give {', '.join(given)}"
            ) from error
