"""Read, resample and write audio files."""

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import AudioError
from focalcodec_jax.files import written_whole

SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {
    ".aif", ".mp2", ".oga", ".opus", ".sph",
}  # fmt: skip
"""File extensions of the audio formats that libsndfile reads."""
OTHER_SUFFIXES = frozenset({".aac", ".ac3", ".amr", ".ape", ".m4a", ".m4b", ".mka", ".mpc", ".tta", ".webm", ".wma"})
"""File extensions of audio formats that libsndfile cannot read. Such files are reported instead of skipped."""

STREAMED_BYTES = 0x7FFFF000
"""Header sizes of at least this value are placeholders. The file was written to a pipe, and its length was unknown."""
WRITE_SAMPLES = 2**14
"""Samples per write call. Larger blocks overflow the stack in libsndfile's Vorbis encoder."""
UNKNOWN_FRAMES = 2**62
"""libsndfile reports this many frames or more when the header does not contain the length."""


def checked(sig: np.ndarray, name: str = "the signal") -> np.ndarray:
    """Check a signal and return it as one-dimensional float32.

    Args:
        sig: (samples,) floats.
        name: name of the signal in error messages.

    Raises:
        AudioError: the signal is not one-dimensional, not floating point, empty, or not finite.
    """
    sig = np.asarray(sig)
    if sig.ndim != 1:
        raise AudioError(f"{name} has shape {sig.shape}; give one channel, an array of shape (samples,)")
    if not np.issubdtype(sig.dtype, np.floating):
        raise AudioError(f"{name} contains {sig.dtype} samples; give floats in [-1, 1]")
    if sig.size == 0:
        raise AudioError(f"{name} is empty; at least one sample is needed")
    if not np.isfinite(sig).all():
        bad = np.flatnonzero(~np.isfinite(sig))
        raise AudioError(f"{name} contains {bad.size} samples that are NaN or infinite, the first at sample {bad[0]}")
    return sig.astype(np.float32)


def resample(sig: np.ndarray, rate_hz: float, target_hz: float) -> np.ndarray:
    """Resample a (samples,) signal with soxr's high-quality band-limited filter.

    Raises:
        AudioError: the source rate is not a positive number.
    """
    if not rate_hz > 0:
        raise AudioError(f"the sample rate is {rate_hz} Hz; it must be positive")
    if rate_hz == target_hz:
        return sig
    # Resampling one sample may return an empty signal, but a codec needs at least one sample.
    return soxr.resample(sig, rate_hz, target_hz, quality="HQ") if sig.size > 1 else sig


def read(path: str | Path, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Read an audio file of any format that libsndfile supports, mix it down to one channel and resample it.

    Returns:
        (samples,) float32 at `rate_hz`.

    Raises:
        AudioError: the file is missing, not audio, truncated, empty, or not finite.
    """
    with open_audio(path, str(path)) as file:
        return read_part(file, str(path), rate_hz)


def read_bytes(content: bytes, name: str, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Read audio as `read` does, from the content of a file. `name` is its name in error messages."""
    with open_audio(io.BytesIO(content), name) as file:
        return read_part(file, name, rate_hz)


@contextmanager
def open_audio(source: str | Path | io.IOBase, name: str) -> Iterator[soundfile.SoundFile]:
    """Open an audio file, so that parts of it can be read with `read_part`.

    Args:
        source: a path, or an open file.
        name: name of the file in error messages.

    Raises:
        AudioError: the file is missing, not audio, or shorter than its header says.
    """
    with ExitStack() as stack:
        if isinstance(source, str | Path):
            try:
                if stat.S_ISFIFO(os.stat(source).st_mode):  # opening a pipe blocks until another process writes to it
                    raise AudioError(f"{name} is a pipe; give an audio file")
                source = stack.enter_context(open(source, "rb"))
            except FileNotFoundError as error:
                raise AudioError(f"{name} does not exist") from error
            except IsADirectoryError as error:
                raise AudioError(f"{name} is a folder; give an audio file") from error
            except OSError as error:  # for example no permission, or a cycle of links
                raise AudioError(f"{name} cannot be read: {error.strerror}") from error
            descriptor = source.fileno()
        else:
            descriptor = source
        try:
            file = stack.enter_context(soundfile.SoundFile(descriptor, closefd=False))  # pyright: ignore[reportArgumentType]
        except soundfile.SoundFileError as error:
            reason = getattr(error, "error_string", error)
            raise AudioError(
                f"{name} is not audio that libsndfile reads ({reason}); WAV and FLAC always work"
            ) from error
        if file.frames >= UNKNOWN_FRAMES:
            raise AudioError(
                f"the header of {name} does not say how long it is, as in FLAC from a pipe; save it again as a file"
            )
        # libsndfile reads truncated files without an error, and only logs the expected size
        for claimed, present in re.findall(r"(?:data|SSND|[Ss]ize|riff) +: (\d+) \(should be (\d+)\)", file.extra_info):
            if int(present) < int(claimed) < STREAMED_BYTES:
                raise AudioError(f"{name} is cut short: its header says {claimed} bytes, but it has {present}")
        yield file


def read_part(
    file: soundfile.SoundFile,
    name: str,
    rate_hz: int = SAMPLE_RATE_HZ,
    *,
    start: int = 0,
    frames: int | None = None,
    channel: int | None = None,
) -> np.ndarray:
    """Read a part of an open audio file, mix it down to one channel and resample it.

    Args:
        file: the open file.
        name: name of the file in error messages.
        rate_hz: sample rate to resample to.
        start: first sample to read, at the rate of the file.
        frames: number of samples to read, at the rate of the file. None reads to the end.
        channel: index of the channel to read, from 0. None takes the mean of all channels.

    Returns:
        (samples,) float32 at `rate_hz`.

    Raises:
        AudioError: as in `read`, or the file has no such channel.
    """
    if channel is not None and channel >= file.channels:
        raise AudioError(f"{name} has {file.channels} channel(s), so it has no channel {channel} (counted from 0)")
    try:
        if start:
            file.seek(start)
        expected = file.frames - start if frames is None else min(frames, file.frames - start)
        samples = file.read(expected, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", error)
        raise AudioError(f"{name} cannot be decoded to its end ({reason})") from error
    if len(samples) < expected:
        raise AudioError(f"{name} is cut short: its header says {expected} samples, but it has {len(samples)}")
    sig = samples.mean(axis=1) if channel is None else samples[:, channel]
    return checked(resample(checked(sig, name), file.samplerate, rate_hz), name)


def write(path: str | Path, sig: np.ndarray, rate_hz: int) -> None:
    """Write a (samples,) signal in [−1, 1] atomically. The file extension selects the format.

    Raises:
        AudioError: the extension is not that of an audio format, or libsndfile cannot write this format at this rate.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_name(path)
    with written_whole(path) as part, writing(part, rate_hz) as append:
        append(sig)


@contextmanager
def writing(path: Path, rate_hz: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Create an audio file, and yield a function that appends (samples,) signals to it.

    The file extension selects the format.

    Raises:
        AudioError: libsndfile cannot write this format at this rate.
        OSError: the file cannot be written.
    """
    name = path.suffix[1:].upper()
    try:
        with (
            open(path, "wb") as raw,
            soundfile.SoundFile(raw, "w", rate_hz, 1, format={"OPUS": "OGG", "AIF": "AIFF"}.get(name, name)) as file,
        ):

            def append(sig: np.ndarray) -> None:
                for start in range(0, len(sig), WRITE_SAMPLES):
                    file.write(np.clip(sig[start : start + WRITE_SAMPLES], -1, 1))

            yield append
    except (soundfile.SoundFileError, ValueError) as error:
        raise AudioError(f"{path} cannot be written as {path.suffix} ({error}); .wav always works") from error


def check_name(path: Path) -> None:
    """Check that a file name has the extension of an audio format of libsndfile.

    Raises:
        AudioError: the name has another extension.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise AudioError(f"{path} does not end in an audio format that libsndfile writes, such as .wav or .flac")


def is_audio_name(path: str | Path) -> bool:
    """Whether a file name has the extension of an audio format, including formats that cannot be read."""
    return Path(path).suffix.lower() in SUFFIXES | OTHER_SUFFIXES


def recordings(folder: str | Path) -> list[Path]:
    """List the audio files in a folder and its subfolders, sorted by name.

    Raises:
        AudioError: the folder contains no audio files.
    """
    folder = Path(folder)
    found = sorted(path for path in folder.rglob("*") if is_audio_name(path) and path.is_file())
    if not found:
        raise AudioError(f"{folder} contains no audio files; looked for names ending in .wav, .flac, .mp3, .ogg, …")
    return found
