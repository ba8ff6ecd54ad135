"""Finding recordings, and packing them into shards.

A corpus is what `prepare` wrote (`manifest.jsonl` beside ArrayRecord shards of FLAC), a CSV or JSONL manifest of
audio files, or a folder of them, such as a LibriTTS or LibriSpeech tree.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from focalcodec_jax import audio
from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import AudioError
from focalcodec_jax.pretrained import ASSETS

MANIFEST = "manifest.jsonl"
SAMPLE = "sample"
"""In place of a folder: the speech in this package."""


@dataclass(frozen=True)
class Recording:
    """Where a recording lies, and how long it is."""

    id: str
    path: str
    """An audio file, or a shard."""
    samples: int
    """At 16 kHz; 0 where the file's header could not be read."""
    record: int | None = None
    """Its place in the shard."""

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE_HZ


def find(inputs: Sequence[str | Path], workers: int = 8) -> list[Recording]:
    """All recordings of some folders and manifests, in the order given.

    Raises:
        AudioError: one does not exist or holds nothing, a manifest has no path column, or an id comes twice.
    """
    found = [recording for path in inputs for recording in _find_one(Path(path), workers)]
    seen: dict[str, Recording] = {}
    for recording in found:
        other = seen.setdefault(recording.id, recording)
        if other is not recording:
            raise AudioError(f"two recordings have the id {recording.id!r}: {other.path} and {recording.path}")
    return found


def _find_one(path: Path, workers: int) -> list[Recording]:
    if str(path) == SAMPLE and not path.exists():
        path = ASSETS
    if not path.exists():
        raise AudioError(f"{path} does not exist; give a folder of recordings, or a manifest (.csv, .jsonl)")
    if path.is_dir() and (path / MANIFEST).is_file():
        path = path / MANIFEST
    if path.is_dir():
        entries = [{"id": str(f.relative_to(path).with_suffix("")), "path": str(f)} for f in audio.recordings(path)]
    elif path.suffix in (".jsonl", ".csv"):
        entries = list(_manifest(path))
        if not entries:
            raise AudioError(f"{path} lists no recordings")
    else:
        raise AudioError(f"{path} is neither a folder nor a manifest (.csv, .jsonl)")
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(_recording, entries))


def _manifest(path: Path) -> Iterator[dict]:
    """Rows of a manifest, their paths made whole; those in it are relative to it."""
    try:
        content = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before the first column
    except UnicodeDecodeError as error:
        raise AudioError(f"{path} is not text in UTF-8: {error}") from error
    lines = io.StringIO(content, newline="")
    rows: Iterable[Mapping]
    rows = csv.DictReader(lines) if path.suffix == ".csv" else map(_json_line(path), filter(str.strip, lines))
    for number, row in enumerate(rows, 1):
        key = next((key for key in ("path", "audio", "audio_filepath", "shard") if row.get(key)), None)
        if key is None:
            columns = ", ".join(map(str, row))
            raise AudioError(f"{path}, entry {number}: no path, audio or audio_filepath among {columns}")
        if not isinstance(row[key], str):
            raise AudioError(f"{path}, entry {number}: {key} is {row[key]!r:.60}, not the path of a file")
        where = path.parent / row[key]
        yield {**row, "id": str(row.get("id") or Path(row[key]).with_suffix("")), "path": str(where)}


def _json_line(path: Path):
    def parse(line: str) -> Mapping:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise AudioError(f"{path}: not one JSON object a line: {line.strip()[:80]!r}") from error
        if not isinstance(row, dict):
            raise AudioError(f"{path}: not one JSON object a line: {line.strip()[:80]!r}")
        return row

    return parse


def _recording(entry: Mapping) -> Recording:
    record = entry.get("record")
    if entry.get("samples") and entry.get("rate_hz"):
        try:
            seconds = int(entry["samples"]) / int(entry["rate_hz"])
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise AudioError(f"{entry['id']}: samples and rate_hz are positive integers ({error})") from error
    else:
        try:
            info = soundfile.info(entry["path"])
            seconds = info.frames / info.samplerate
        except (soundfile.SoundFileError, TypeError):  # named when it comes to reading it
            seconds = 0.0
    return Recording(
        entry["id"], entry["path"], round(seconds * SAMPLE_RATE_HZ), None if record is None else int(record)
    )


class Reader:
    """Random access to the audio of a corpus. Opens each shard once, when it is first read."""

    def __init__(self, recordings: Sequence[Recording]):
        self.recordings = recordings
        self._shards: dict[str, object] = {}

    def __getstate__(self):
        return {"recordings": self.recordings, "_shards": {}}

    def read(self, index: int) -> np.ndarray:
        """A recording at 16 kHz, (samples,) float32.

        Raises:
            AudioError: missing, unreadable, empty, or not finite.
        """
        recording = self.recordings[index]
        return self._from_shard(recording) if recording.record is not None else audio.read(recording.path)

    def _from_shard(self, recording: Recording) -> np.ndarray:
        import grain

        assert recording.record is not None
        shard = self._shards.get(recording.path)
        try:
            if shard is None:
                shard = self._shards[recording.path] = grain.sources.ArrayRecordDataSource([recording.path])
            content = shard[recording.record]  # pyright: ignore[reportIndexIssue]
        except Exception as error:  # the reader raises nothing narrower
            raise AudioError(f"{recording.path}, record {recording.record}: {error}") from error
        return audio.read_bytes(unpack(content)[1], f"{recording.id} in {recording.path}")


def pack(header: Mapping, flac: bytes) -> bytes:
    """A shard's record: one line of JSON (id, samples, rate_hz), then the FLAC file."""
    return json.dumps(header).encode() + b"\n" + flac


def unpack(record: bytes) -> tuple[dict, bytes]:
    header, _, flac = record.partition(b"\n")
    return json.loads(header), flac
