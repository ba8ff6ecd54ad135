"""Reading, resampling and writing of audio files."""

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

FORMATS = frozenset(f".{name.lower()}" for name in soundfile.available_formats())
SUFFIXES = FORMATS - {".raw"} | {".aif", ".mp2", ".oga", ".opus", ".sph"}
"""File name endings of audio that libsndfile reads."""
OTHER_SUFFIXES = frozenset({".aac", ".ac3", ".amr", ".ape", ".m4a", ".m4b", ".mka", ".mpc", ".tta", ".webm", ".wma"})
"""And of audio that it does not read: such files in a folder are to be named, rather than passed over."""

STREAMED_BYTES = 0x7FFFF000
"""Sizes from here on stand in the headers of files that were written to a pipe, and mean that nobody knew."""
WRITE_SAMPLES = 2**14
"""Written at once; libsndfile's Vorbis encoder keeps a block on the stack, and faults where that is too small."""
UNKNOWN_FRAMES = 2**62
"""What libsndfile says, or more, where a header does not tell."""


def checked(sig: np.ndarray, name: str = "the signal") -> np.ndarray:
    """A recording as one-dimensional float32.

    Raises:
        AudioError: not one-dimensional, not floating point, empty, or not finite.
    """
    sig = np.asarray(sig)
    if sig.ndim != 1:
        raise AudioError(f"{name} has shape {sig.shape}; give one channel, an array of shape (samples,)")
    if not np.issubdtype(sig.dtype, np.floating):
        raise AudioError(f"{name} holds {sig.dtype} samples; give floats in [-1, 1]")
    if sig.size == 0:
        raise AudioError(f"{name} is empty; at least one sample is needed")
    if not np.isfinite(sig).all():
        bad = np.flatnonzero(~np.isfinite(sig))
        raise AudioError(f"{name} holds {bad.size} samples that are NaN or infinite, the first at sample {bad[0]}")
    return sig.astype(np.float32)


def resample(sig: np.ndarray, rate_hz: float, target_hz: float) -> np.ndarray:
    """Band-limited resampling (soxr, high quality) of a (samples,) signal.

    Raises:
        AudioError: a rate is not a positive number.
    """
    if not rate_hz > 0:
        raise AudioError(f"the sample rate is {rate_hz} Hz; it must be positive")
    if rate_hz == target_hz:
        return sig
    # The filter may leave nothing of a recording of a few samples; a codec needs at least one.
    return soxr.resample(sig, rate_hz, target_hz, quality="HQ") if sig.size > 1 else sig


def read(path: str | Path, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Read anything libsndfile knows, mix it down to one channel and resample it.

    Returns:
        (samples,) float32 at `rate_hz`.

    Raises:
        AudioError: no such file, not audio, cut short, empty, or not finite.
    """
    with opened(path, str(path)) as file:
        return read_part(file, str(path), rate_hz)


def read_bytes(content: bytes, name: str, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """As `read`, from an audio file's content; errors call it `name`."""
    with opened(io.BytesIO(content), name) as file:
        return read_part(file, name, rate_hz)


@contextmanager
def opened(source: str | Path | io.IOBase, name: str) -> Iterator[soundfile.SoundFile]:
    """An audio file, to read parts of.

    Raises:
        AudioError: no such file, not audio, or shorter than its header says.
    """
    with ExitStack() as stack:
        if isinstance(source, str | Path):
            try:
                if stat.S_ISFIFO(os.stat(source).st_mode):  # opening it would wait for somebody to write to it
                    raise AudioError(f"{name} is a pipe; give an audio file")
                source = stack.enter_context(open(source, "rb"))
            except FileNotFoundError as error:
                raise AudioError(f"{name} does not exist") from error
            except IsADirectoryError as error:
                raise AudioError(f"{name} is a folder; give an audio file") from error
            except OSError as error:  # such as no permission, or links in a circle
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
            raise AudioError(f"{name} does not say how long it is, as FLAC from a pipe; write it to a file once more")
        # libsndfile takes what is there and only notes that there should be more
        for claimed, present in re.findall(r"(?:data|SSND|[Ss]ize|riff) +: (\d+) \(should be (\d+)\)", file.extra_info):
            if int(present) < int(claimed) < STREAMED_BYTES:
                raise AudioError(f"{name} is cut short: its header says {claimed} bytes, {present} are there")
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
    """Part of an opened audio file; errors call it `name`.

    Args:
        start, frames: in samples of the file; to its end without `frames`.
        channel: the one to take, from 0; the mean of all without it.

    Returns:
        (samples,) float32 at `rate_hz`.

    Raises:
        AudioError: as `read`, or there is no such channel.
    """
    if channel is not None and channel >= file.channels:
        raise AudioError(f"{name} has {file.channels} channel(s), there is no channel {channel} (they count from 0)")
    try:
        if start:
            file.seek(start)
        expected = file.frames - start if frames is None else min(frames, file.frames - start)
        samples = file.read(expected, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", error)
        raise AudioError(f"{name} cannot be decoded to its end ({reason})") from error
    if len(samples) < expected:
        raise AudioError(f"{name} is cut short: its header says {expected} samples, {len(samples)} are there")
    sig = samples.mean(axis=1) if channel is None else samples[:, channel]
    return checked(resample(checked(sig, name), file.samplerate, rate_hz), name)


def write(path: str | Path, sig: np.ndarray, rate_hz: int) -> None:
    """Write a (samples,) signal in [−1, 1] in the format its name ends in; the file appears whole or not at all.

    Raises:
        AudioError: libsndfile knows no format of that name.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_name(path)
    with written_whole(path) as part, writing(part, rate_hz) as put:
        put(sig)


@contextmanager
def writing(path: Path, rate_hz: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends (samples,) signals to a new file, in the format its name ends in.

    Raises:
        AudioError: libsndfile cannot write this format, or not at this rate.
        OSError: the file cannot be written.
    """
    name = path.suffix[1:].upper()
    try:
        with (
            open(path, "wb") as raw,
            soundfile.SoundFile(raw, "w", rate_hz, 1, format={"OPUS": "OGG", "AIF": "AIFF"}.get(name, name)) as file,
        ):

            def put(sig: np.ndarray) -> None:
                for start in range(0, len(sig), WRITE_SAMPLES):
                    file.write(np.clip(sig[start : start + WRITE_SAMPLES], -1, 1))

            yield put
    except (soundfile.SoundFileError, ValueError) as error:
        raise AudioError(f"{path} cannot be written as {path.suffix} ({error}); .wav always works") from error


def check_name(path: Path) -> None:
    """Refuse a name that no format of libsndfile goes by.

    Raises:
        AudioError: says which endings do.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise AudioError(f"{path} does not end in an audio format that libsndfile writes, such as .wav or .flac")


def is_audio_name(path: str | Path) -> bool:
    """Whether a file's name says that it is a recording, be it one that can be read or not."""
    return Path(path).suffix.lower() in SUFFIXES | OTHER_SUFFIXES


def recordings(folder: str | Path) -> list[Path]:
    """Audio files below a folder, by name.

    Raises:
        AudioError: the folder holds none.
    """
    folder = Path(folder)
    found = sorted(path for path in folder.rglob("*") if is_audio_name(path) and path.is_file())
    if not found:
        raise AudioError(f"{folder} holds no audio files; looked for names ending in .wav, .flac, .mp3, .ogg, …")
    return found
