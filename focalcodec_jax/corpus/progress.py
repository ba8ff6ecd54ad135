"""Events that runs over a corpus report to their `progress` callback, and the common part of their reports."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceUsage:
    """Use of the devices by a run. All shares are between 0 and 1.

    Attributes:
        elapsed_seconds: time since the run began.
        busy_share: share of that time in which the devices computed.
        waiting_share: share of that time in which the devices waited for data.
        compiling_share: share of that time in which the run waited for a program to be compiled.
        padding_share: share of padding in all batches.
        mfu: model FLOPs utilization, relative to the bfloat16 peak of the devices. None if the peak is unknown, as for
            CPUs.
    """

    elapsed_seconds: float
    busy_share: float
    waiting_share: float
    compiling_share: float
    padding_share: float
    mfu: float | None


@dataclass(frozen=True)
class ListingStarted:
    """The inputs are about to be listed."""


@dataclass(frozen=True)
class ListingFinished:
    """The inputs were listed."""

    recordings: int


@dataclass(frozen=True)
class CodecLoading:
    """The codec is about to be loaded."""

    checkpoint: str


@dataclass(frozen=True)
class ProcessingStarted:
    """The first recording is about to be processed."""

    estimated_seconds: float
    """Estimated seconds of audio to process."""


@dataclass(frozen=True)
class AudioProcessed:
    """A recording or a window was processed. A recording that cannot be read has 0 seconds."""

    seconds: float
    estimated_seconds: float
    """Seconds that the estimate of the total contains for this audio."""
    usage: DeviceUsage


@dataclass(frozen=True)
class RecordingFailed:
    """A recording cannot be read."""

    message: str


@dataclass(frozen=True)
class ShardKept:
    """A shard was read again because of failures, and kept because no further recording can be read now."""

    number: int


CorpusEvent = (
    ListingStarted | ListingFinished | CodecLoading | ProcessingStarted | AudioProcessed | RecordingFailed | ShardKept
)
ProgressCallback = Callable[[CorpusEvent], None]


def ignore(event: CorpusEvent) -> None:
    """A callback that does nothing."""


@dataclass(frozen=True)
class CorpusReport:
    """Common part of the reports of `tokenize` and `detokenize`.

    Attributes:
        output: the output folder.
        processed_seconds: seconds of audio that this call processed.
        usage: use of the devices by this call. None if there was nothing to do.
    """

    output: str
    processed_seconds: float
    usage: DeviceUsage | None

    @property
    def speed(self) -> float:
        """Seconds of audio processed per second of time."""
        return self.processed_seconds / self.usage.elapsed_seconds if self.usage else 0.0
