"""What a run reports while it works. The command shows these; the library never prints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunMessage:
    """A message for the user. Level `phase` names work that lasts until the next event."""

    text: str
    level: Literal["phase", "info", "warning"] = "info"


@dataclass(frozen=True)
class Speed:
    """Means since the last line of the log."""

    steps_per_second: float
    audio_hours_per_second: float
    data_wait_share: float
    """Share of the time spent waiting for data."""
    tflops_per_second: float
    mfu: float | None
    """Model FLOPs utilization; None where the device's peak is not known."""


@dataclass(frozen=True)
class StepProgress:
    """A step is done. The first event of a call has no loss, because no step was made yet."""

    step: int
    total: int
    loss: float | None = None
    speed: Speed | None = None
    logged: bool = False
    """Whether the log got a line for this step."""


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
    """Recordings to pack in all."""
    hours: float
    """Hours of audio so far."""


ProgressEvent = RunMessage | StepProgress | ValidationProgress | PrepareProgress
ProgressCallback = Callable[[ProgressEvent], None]


def ignore(event: ProgressEvent) -> None:
    """The progress callback of a caller that gave none."""
