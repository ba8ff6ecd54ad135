"""Small corpora, and commands that tokenize them in this process."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
from typer.testing import CliRunner

from focalcodec_jax import Codec
from focalcodec_jax.cli import app
from focalcodec_jax.recordings import audio
from support.training import voiced

SECONDS = (0.02, 0.4, 0.05, 0.3, 0.25, 0.35, 0.9, 0.33, 0.28, 1.1, 0.31, 0.39)


def mixed_recordings(folder: Path) -> Path:
    """Twelve recordings of several formats, rates, channels and lengths."""
    folder.mkdir()
    kinds = [("wav", 16_000), ("flac", 22_050), ("ogg", 44_100), ("mp3", 16_000), ("aiff", 8000), ("opus", 48_000)]
    for number, seconds in enumerate(SECONDS):
        suffix, rate_hz = kinds[number % 6]
        sig = audio.resample(voiced(seconds, number), 16_000, rate_hz)
        sig = np.stack([sig, 0.5 * sig], axis=1) if number % 4 == 1 else sig
        kind = "OGG" if suffix == "opus" else None
        subtype = "OPUS" if suffix == "opus" else None
        soundfile.write(folder / f"u{number:02d}.{suffix}", sig, rate_hz, format=kind, subtype=subtype)
    return folder


def tokenize(*arguments: object, code: int = 0) -> str:
    """Run `focalcodec-jax tokenize` with the codec in CHECKPOINT, and return what it printed."""
    fixed = ["-c", os.environ["CHECKPOINT"], "--workers", "0", "--check", "0"]
    done = CliRunner().invoke(app, ["tokenize", *fixed, *map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output


def tokenize_error(*arguments: object) -> BaseException | None:
    """The exception that `focalcodec-jax tokenize` raises."""
    fixed = ["-c", os.environ["CHECKPOINT"], "--workers", "0"]
    return CliRunner().invoke(app, ["tokenize", *fixed, *map(str, arguments)]).exception


def detokenize(*arguments: object) -> str:
    """Run `focalcodec-jax detokenize` with the codec in CHECKPOINT, and return what it printed."""
    done = CliRunner().invoke(app, ["detokenize", *map(str, arguments), "-c", os.environ["CHECKPOINT"]])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def rows(output: Path) -> list[dict]:
    """All rows of a Parquet data set, in order."""
    tables = [pq.read_table(path) for path in sorted((output / "data").glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def encoded(codec: Codec, path: str) -> np.ndarray:
    """The tokens of an audio file that is encoded without other recordings."""
    return codec.encode(audio.read(path), 16_000)[0]
