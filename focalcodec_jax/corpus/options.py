"""Options of `tokenize` and `detokenize`."""

import os
from dataclasses import dataclass, field
from typing import get_args

from focalcodec_jax.config import DType
from focalcodec_jax.errors import ConfigError
from focalcodec_jax.recordings.readers import CONTEXT_SECONDS, WINDOW_SECONDS
from focalcodec_jax.tokens.formats import find_format

MINIMUM = {"workers": 0, "window": 1, "context": 1, "batch_seconds": 0.1, "shard_hours": 0.001, "check": 0}


def default_workers() -> int:
    """Number of CPUs that this process may use, at most 16."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cpus)


@dataclass(frozen=True)
class CorpusOptions:
    """Options that `tokenize` and `detokenize` share.

    Attributes:
        checkpoint: hub name or folder of the codec. By default, `tokenize` uses the demo codec, and `detokenize` uses
            the codec that made the tokens.
        device: "cpu", "gpu" or "tpu". None selects JAX's default backend.
        process: index of this process, from 0, and the number of processes that share the work.
        workers: number of processes that read audio, or of threads that write it.
        window: length of a window in seconds. Longer recordings are processed in overlapping windows.
        context: seconds of context at each end of a window. Their results are dropped.
        batch_seconds: maximum seconds of audio per device and batch, including padding. The default depends on the
            device.

    Raises:
        ConfigError: a value is out of its range.
    """

    checkpoint: str | None = None
    device: str | None = None
    process: tuple[int, int] = (0, 1)
    workers: int = field(default_factory=default_workers)
    window: int = WINDOW_SECONDS
    context: int = CONTEXT_SECONDS
    batch_seconds: float | None = None

    def __post_init__(self) -> None:
        index, count = self.process
        if not 0 <= index < count:
            raise ConfigError(f"there is no process {index} of {count}; they are counted from 0")
        for name, minimum in MINIMUM.items():
            value = getattr(self, name, None)
            if value is not None and not value >= minimum:
                raise ConfigError(f"{name} must be at least {minimum}, not {value}", parameter=name)


@dataclass(frozen=True)
class TokenizeOptions(CorpusOptions):
    """Options of `tokenize`.

    Attributes:
        dtype: compute dtype of the codec. bfloat16 is faster and changes some tokens.
        format: name of the output format, one of `focalcodec_jax.tokens.formats.FORMATS`.
        shard_hours: hours of audio per shard. None gives a thousandth of the corpus, within 0.5 to 100 hours.
        check: number of recordings that are encoded again at the end, one by one in float32, to count tokens that
            differ.
        strict: whether to stop at the first recording that cannot be read.
        retry_failed: whether to process shards again in which some recordings could not be read.
    """

    dtype: DType = "float32"
    format: str = "parquet"
    shard_hours: float | None = None
    check: int = 8
    strict: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        find_format(self.format)
        if self.dtype not in get_args(DType):
            raise ConfigError(f"dtype is {' or '.join(get_args(DType))}, not {self.dtype!r}", parameter="dtype")


@dataclass(frozen=True)
class DetokenizeOptions(CorpusOptions):
    """Options of `detokenize`.

    Attributes:
        suffix: file extension of the audio files, such as ".wav". It selects their format.
    """

    suffix: str = ".flac"
