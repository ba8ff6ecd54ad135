"""A recording: where it lies, and reading it, wherever that is."""

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import soundfile

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import AudioError, require
from focalcodec_jax.files import filesystem, is_url
from focalcodec_jax.recordings import audio

WHOLE_BYTES = 2**26
"""Largest remote file that is fetched at once; of a larger one only the parts that are read."""
PART_BYTES = 2**20
"""Fetched at once of such a part."""

TYPICAL_BYTES_PER_SECOND, TYPICAL_SECONDS = 16_000, 10.0
"""For estimates alone: FLAC of 16 kHz, read speech."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Where a recording lies, and what is known of it before it is read."""

    id: str
    path: str
    """An audio file, or the shard or tar that holds it; a path or a URL."""
    samples: int = 0
    """At 16 kHz; 0 where nobody has looked, or the file's header could not be read."""
    size: int = 0
    """Bytes; 0 where nobody has looked."""
    record: int | None = None
    """Its place in an ArrayRecord shard."""
    member: str | None = None
    """Its name in a tar, in which it begins at byte `offset`."""
    offset: int = 0
    start: float = 0.0
    """Where in the file it begins, in seconds."""
    duration: float | None = None
    """How long it is, in seconds, where it ends before the file does."""
    channel: int | None = None
    """The channel to take; the mean of all without it."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    """What else its manifest says of it."""
    problem: str | None = None
    """Why it cannot be read, where its listing shows that already."""

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE_HZ

    @property
    def estimated_seconds(self) -> float:
        """From the manifest's `duration` or the file's size where the length is not known."""
        hint = self.columns.get("duration")
        if self.samples or not isinstance(hint, int | float | str):
            return self.seconds or self.size / TYPICAL_BYTES_PER_SECOND or TYPICAL_SECONDS
        try:
            hint = float(hint)
        except ValueError:
            return TYPICAL_SECONDS
        return hint if 0 < hint < math.inf else TYPICAL_SECONDS

    @property
    def source(self) -> str:
        """Where it lies, for people to read."""
        inside = self.member if self.record is None else str(self.record)
        return printable(self.path if inside is None else f"{self.path}/{inside}")


def printable(name: str) -> str:
    """A name with what is not UTF-8 in it spelled out, as `\\xff`, so that any format can hold it."""
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return name.encode("utf-8", "backslashreplace").decode()


def legible(value: Any) -> Any:
    """A value from JSON with all its text `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [legible(one) for one in value]
    if isinstance(value, dict):
        return {printable(str(key)): legible(one) for key, one in value.items()}
    return value


@contextmanager
def opened(recording: Recording, *, whole: bool = True) -> Iterator[soundfile.SoundFile]:
    """The audio file that holds a recording.

    Args:
        whole: most of it will be read; of a remote file only the parts that are read are fetched otherwise.

    Raises:
        AudioError: missing, not audio, or cut short.
    """
    if recording.problem is not None:
        raise AudioError(recording.problem)
    path = recording.path
    if recording.record is not None:
        source = io.BytesIO(unpack(_record(path, recording.record))[1])
    elif recording.member is not None:
        source = io.BytesIO(_span(path, recording.offset, recording.size))
    elif is_url(path):
        source = _remote(path, recording.size if whole else 0)
    else:
        source = path
    with audio.opened(source, recording.source) as file:
        yield file


def read(recording: Recording, start: int = 0, seconds: int | None = None) -> np.ndarray:
    """A recording, or a part of it.

    Args:
        start, seconds: the part, in whole seconds, which are whole samples at any rate; to the end without `seconds`.

    Returns:
        (samples,) float32 at 16 kHz.

    Raises:
        AudioError: missing, not audio, cut short, empty, or not finite.
    """
    with opened(recording) as file:
        return read_from(recording, file, start, seconds)


def read_from(
    recording: Recording, file: soundfile.SoundFile, start: int = 0, seconds: int | None = None
) -> np.ndarray:
    """`read`, from the file that `opened` gave."""
    first, frames = span(recording, file)
    first, frames = first + start * file.samplerate, frames - start * file.samplerate
    if seconds is not None:
        frames = min(frames, seconds * file.samplerate)
    return audio.read_part(file, recording.source, start=first, frames=frames, channel=recording.channel)


def span(recording: Recording, file: soundfile.SoundFile) -> tuple[int, int]:
    """First sample of a recording in its file, and how many it has, at the file's rate.

    Raises:
        AudioError: it begins or ends outside the file.
    """
    first = round(recording.start * file.samplerate)
    frames = file.frames - first if recording.duration is None else round(recording.duration * file.samplerate)
    if not 0 <= first <= first + frames <= file.frames + file.samplerate // 100:  # durations are often rounded
        end = "its end" if recording.duration is None else f"{recording.start + recording.duration:g}"
        length = file.frames / file.samplerate
        raise AudioError(f"{recording.source} lasts {length:g} s; there is no {recording.start:g} s to {end} in it")
    return first, min(frames, file.frames - first)


def num_samples(recording: Recording) -> int:
    """Length at 16 kHz by the file's header; 0 where it cannot be read."""
    try:
        with opened(recording, whole=False) as file:
            return round(span(recording, file)[1] / file.samplerate * SAMPLE_RATE_HZ)
    except (AudioError, OSError):  # named when it comes to reading it
        return 0


def _remote(path: str, size: int) -> Any:
    files, inside = filesystem(path)
    try:
        if 0 < size <= WHOLE_BYTES:
            return io.BytesIO(files.cat_file(inside))
        return files.open(inside, "rb", block_size=PART_BYTES)
    except FileNotFoundError as error:
        raise AudioError(f"{path} does not exist") from error


def _span(path: str, offset: int, size: int) -> bytes:
    if is_url(path):
        files, inside = filesystem(path)
        return files.cat_file(inside, start=offset, end=offset + size)
    with open(path, "rb") as file:
        return os.pread(file.fileno(), size, offset)


def _record(path: str, record: int) -> bytes:
    require("reading ArrayRecord shards", "train", "grain", "array_record")
    try:
        return _shard(path)[record]
    except Exception as error:  # the reader raises nothing narrower
        raise AudioError(f"{path}, record {record}: {error}") from error


@lru_cache(maxsize=256)  # each holds a file open
def _shard(path: str) -> Any:
    import fsspec
    import grain

    # its reader knows local files alone
    local = str(fsspec.open_local(f"simplecache::{path}")) if is_url(path) else path
    return grain.sources.ArrayRecordDataSource([local])


def pack(header: Mapping[str, Any], body: bytes) -> bytes:
    """A shard's record: one line of JSON (of recordings: id, samples, rate_hz), then a FLAC file or raw tokens."""
    return json.dumps(header).encode() + b"\n" + body


def unpack(record: bytes) -> tuple[dict[str, Any], bytes]:
    header, _, body = record.partition(b"\n")
    return json.loads(header), body


def headers(path: str) -> list[dict[str, Any]]:
    """The header of every record of a shard.

    Raises:
        AudioError: not an ArrayRecord shard, or one that is cut short.
    """
    require("reading ArrayRecord shards", "train", "grain", "array_record")
    try:
        shard = _shard(path)
        return [unpack(shard[record])[0] for record in range(len(shard))]
    except Exception as error:  # the reader raises nothing narrower
        raise AudioError(f"{path} is not a whole ArrayRecord shard of recordings: {error}") from error
