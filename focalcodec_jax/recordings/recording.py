"""Recordings: the location of their audio, and reading it."""

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
"""Remote files up to this size are downloaded whole. For larger files, only the parts that are read are downloaded."""
PART_BYTES = 2**20
"""Block size when a part of a remote file is downloaded."""

TYPICAL_BYTES_PER_SECOND, TYPICAL_SECONDS = 16_000, 10.0
"""Size of 16 kHz FLAC and usual length of read speech, for estimating durations."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The location of a recording, and its properties that are known before it is read."""

    id: str
    path: str
    """Path or URL of the audio file, or of the shard or tar that contains it."""
    samples: int = 0
    """Length at 16 kHz. 0 means unknown: the header was not read, or is unreadable."""
    size: int = 0
    """Size of the file in bytes. 0 means unknown."""
    record: int | None = None
    """Index of the record, if `path` is an ArrayRecord shard."""
    member: str | None = None
    """Name of the member, if `path` is a tar."""
    offset: int = 0
    """First byte of the member's content in the tar."""
    start: float = 0.0
    """Start of the recording within the file, in seconds."""
    duration: float | None = None
    """Length in seconds, if the recording is a part of the file. None extends it to the end of the file."""
    channel: int | None = None
    """Index of the channel to read. None takes the mean of all channels."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    """Other columns of the manifest."""
    problem: str | None = None
    """Reason why the recording cannot be read, if the listing already shows this."""

    @property
    def seconds(self) -> float:
        """Length in seconds. 0 means unknown."""
        return self.samples / SAMPLE_RATE_HZ

    @property
    def estimated_seconds(self) -> float:
        """Length in seconds, estimated from the manifest's `duration` or the file size if it is unknown."""
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
        """Location of the recording, for messages."""
        inside = self.member if self.record is None else str(self.record)
        return printable(self.path if inside is None else f"{self.path}/{inside}")


def printable(name: str) -> str:
    """Escape the bytes of a name that are not UTF-8, such as `\\xff`, so that every format can store the name."""
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # JSON can contain half of a surrogate pair
        return name.encode("utf-8", "backslashreplace").decode()


def legible(value: Any) -> Any:
    """Apply `printable` to all strings in a value from JSON."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [legible(one) for one in value]
    if isinstance(value, dict):
        return {printable(str(key)): legible(one) for key, one in value.items()}
    return value


@contextmanager
def open_recording(recording: Recording, *, whole: bool = True) -> Iterator[soundfile.SoundFile]:
    """Open the audio file that contains a recording.

    Args:
        recording: the recording.
        whole: whether most of the file will be read. If not, only the parts that are read are downloaded.

    Raises:
        AudioError: the file is missing, not audio, or truncated.
    """
    if recording.problem is not None:
        raise AudioError(recording.problem)
    path = recording.path
    if recording.record is not None:
        source = io.BytesIO(unpack(_record(path, recording.record))[1])
    elif recording.member is not None:
        source = io.BytesIO(_read_bytes(path, recording.offset, recording.size))
    elif is_url(path):
        source = _remote(path, recording.size if whole else 0)
    else:
        source = path
    with audio.open_audio(source, recording.source) as file:
        yield file


def read(recording: Recording, start: int = 0, seconds: int | None = None) -> np.ndarray:
    """Read a recording, or a part of it.

    Args:
        recording: the recording.
        start: start of the part in whole seconds, which are whole numbers of samples at every rate.
        seconds: length of the part in seconds. None reads to the end of the recording.

    Returns:
        (samples,) float32 at 16 kHz.

    Raises:
        AudioError: the recording is missing, not audio, truncated, empty, or not finite.
    """
    with open_recording(recording) as file:
        return read_from(recording, file, start, seconds)


def read_from(
    recording: Recording, file: soundfile.SoundFile, start: int = 0, seconds: int | None = None
) -> np.ndarray:
    """Read a recording as `read` does, from the file that `open_recording` opened."""
    first, frames = span(recording, file)
    first, frames = first + start * file.samplerate, frames - start * file.samplerate
    if seconds is not None:
        frames = min(frames, seconds * file.samplerate)
    return audio.read_part(file, recording.source, start=first, frames=frames, channel=recording.channel)


def span(recording: Recording, file: soundfile.SoundFile) -> tuple[int, int]:
    """First sample of a recording in its file, and its number of samples, at the rate of the file.

    Raises:
        AudioError: the recording begins or ends outside the file.
    """
    first = round(recording.start * file.samplerate)
    frames = file.frames - first if recording.duration is None else round(recording.duration * file.samplerate)
    if not 0 <= first <= first + frames <= file.frames + file.samplerate // 100:  # durations are often rounded
        end = "its end" if recording.duration is None else f"{recording.start + recording.duration:g}"
        length = file.frames / file.samplerate
        raise AudioError(
            f"{recording.source} lasts {length:g} s, so it has no part from {recording.start:g} s to {end}"
        )
    return first, min(frames, file.frames - first)


def num_samples(recording: Recording) -> int:
    """Length in samples at 16 kHz according to the file's header. Returns 0 if the header cannot be read."""
    try:
        with open_recording(recording, whole=False) as file:
            return round(span(recording, file)[1] / file.samplerate * SAMPLE_RATE_HZ)
    except (AudioError, OSError):  # reading the recording reports the reason
        return 0


def _remote(path: str, size: int) -> Any:
    files, inside = filesystem(path)
    try:
        if 0 < size <= WHOLE_BYTES:
            return io.BytesIO(files.cat_file(inside))
        return files.open(inside, "rb", block_size=PART_BYTES)
    except FileNotFoundError as error:
        raise AudioError(f"{path} does not exist") from error


def _read_bytes(path: str, offset: int, size: int) -> bytes:
    if is_url(path):
        files, inside = filesystem(path)
        return files.cat_file(inside, start=offset, end=offset + size)
    with open(path, "rb") as file:
        return os.pread(file.fileno(), size, offset)


def _record(path: str, record: int) -> bytes:
    require("reading ArrayRecord shards", "train", "grain", "array_record")
    try:
        return _array_record(path)[record]
    except Exception as error:  # the reader raises no narrower type
        raise AudioError(f"{path}, record {record}: {error}") from error


@lru_cache(maxsize=256)  # each entry keeps a file open
def _array_record(path: str) -> Any:
    import fsspec
    import grain

    # the reader only opens local files
    local = str(fsspec.open_local(f"simplecache::{path}")) if is_url(path) else path
    return grain.sources.ArrayRecordDataSource([local])


def pack(header: Mapping[str, Any], body: bytes) -> bytes:
    """Encode a record of an ArrayRecord shard. It consists of a line of JSON, and the body.

    Args:
        header: content of the JSON line. For a recording, it contains `id`, `samples` and `rate_hz`.
        body: content of a FLAC file, or raw tokens.
    """
    return json.dumps(header).encode() + b"\n" + body


def unpack(record: bytes) -> tuple[dict[str, Any], bytes]:
    """Decode a record that `pack` encoded. Returns the header and the body."""
    header, _, body = record.partition(b"\n")
    return json.loads(header), body


def headers(path: str) -> list[dict[str, Any]]:
    """Read the headers of all records of a shard.

    Raises:
        AudioError: the file is not an ArrayRecord shard of recordings, or is truncated.
    """
    require("reading ArrayRecord shards", "train", "grain", "array_record")
    try:
        shard = _array_record(path)
        return [unpack(shard[record])[0] for record in range(len(shard))]
    except Exception as error:  # the reader raises no narrower type
        raise AudioError(f"{path} is not a whole ArrayRecord shard of recordings: {error}") from error
