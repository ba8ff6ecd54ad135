"""Events that a run reports. The command displays them, because the library does not print."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunMessage:
    """A message for the user. A message of level `phase` describes work that lasts until the next event."""

    text: str
    level: Literal["phase", "info", "warning"] = "info"


@dataclass(frozen=True)
class Speed:
    """Mean speed since the last line of the log."""

    steps_per_second: float
    audio_hours_per_second: float
    data_wait_share: float
    """Share of the time spent waiting for data."""
    tflops_per_second: float
    mfu: float | None
    """Model FLOPs utilization. None if the peak of the device is unknown."""


@dataclass(frozen=True)
class StepProgress:
    """A step is done. The first event of a call has no loss, because no step has run yet."""

    step: int
    total: int
    loss: float | None = None
    speed: Speed | None = None
    logged: bool = False
    """Whether a line was logged for this step."""


@dataclass(frozen=True)
class ValidationProgress:
    """A validation is done."""

    step: int
    loss: float


@dataclass(frozen=True)
class PrepareProgress:
    """Progress of `prepare`, reported for each complete shard."""

    recordings: int
    total: int
    """Total number of recordings to pack."""
    hours: float
    """Hours of audio in the complete shards."""


ProgressEvent = RunMessage | StepProgress | ValidationProgress | PrepareProgress
ProgressCallback = Callable[[ProgressEvent], None]


def ignore(event: ProgressEvent) -> None:
    """A progress callback that does nothing."""
