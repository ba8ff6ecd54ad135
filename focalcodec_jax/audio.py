"""Reading, resampling and writing of audio files."""

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import AudioError
from focalcodec_jax.files import written_whole

SUFFIXES = frozenset(f".{name.lower()}" for name in soundfile.available_formats()) | {".opus", ".aif"} - {".raw"}
"""File name endings by which a folder's recordings are recognised."""


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
        AudioError: no such file, not audio, empty, or not finite.
    """
    path = Path(path)
    if path.is_dir():
        raise AudioError(f"{path} is a folder; give an audio file")
    if not path.exists():
        raise AudioError(f"{path} does not exist")
    return _read(path, str(path), rate_hz)


def read_bytes(content: bytes, name: str, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """As `read`, from an audio file's content; errors call it `name`."""
    return _read(io.BytesIO(content), name, rate_hz)


def _read(source: Path | io.BytesIO, name: str, rate_hz: int) -> np.ndarray:
    try:
        samples, source_hz = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw file needs a rate given
        raise AudioError(f"{name} is not audio that libsndfile reads ({error}); WAV and FLAC always work") from error
    return checked(resample(checked(samples.mean(axis=1), name), source_hz, rate_hz), name)


def write(path: str | Path, sig: np.ndarray, rate_hz: int) -> None:
    """Write a (samples,) signal in [−1, 1] in the format its name ends in; the file appears whole or not at all.

    Raises:
        AudioError: libsndfile knows no format of that name.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_name(path)
    with written_whole(path) as part, open(part, "wb") as file:
        try:
            name = path.suffix[1:].upper()
            soundfile.write(file, np.clip(sig, -1, 1), rate_hz, format={"OPUS": "OGG", "AIF": "AIFF"}.get(name, name))
        except (soundfile.SoundFileError, ValueError) as error:
            raise AudioError(f"{path} cannot be written as {path.suffix} ({error}); .wav always works") from error


def check_name(path: Path) -> None:
    """Refuse a name that no format of libsndfile goes by.

    Raises:
        AudioError: says which endings do.
    """
    if not is_audio_name(path):
        raise AudioError(f"{path} does not end in an audio format that libsndfile writes, such as .wav or .flac")


def is_audio_name(path: str | Path) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


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
