"""Pack a corpus into ArrayRecord shards of FLAC, from which training reads fast and in any order."""

import hashlib
import io
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from focalcodec_jax.errors import AudioError, ConfigError, FocalCodecError
from focalcodec_jax.files import as_os_error, one_or_more, write_lines, written_whole
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.recording import Recording, open_recording, pack, span
from focalcodec_jax.recordings.sources import MANIFEST, find

from .progress import PrepareProgress, ProgressCallback, RunMessage, ignore

PLAN = "prepare.json"
FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `prepare`."""

    per_shard: int = 1000
    """Number of recordings per shard."""
    rate_hz: int | None = None
    """Sample rate in Hz to resample to. None keeps the rate of each recording."""
    ids: str | Path | None = None
    """Text file with the ids of the recordings to include, one per line. None includes all recordings."""
    workers: int = os.cpu_count() or 1
    """Number of processes that read and encode audio."""

    def __post_init__(self) -> None:
        for name in ("per_shard", "rate_hz", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}", parameter=name)


@dataclass(frozen=True)
class PrepareReport:
    """Result of `prepare`."""

    output: Path
    """Folder with the shards and their manifest."""
    shards: int
    recordings: int
    """Number of recordings in the shards."""
    hours: float
    """Hours of audio in the shards."""
    failed: int
    """Number of recordings that could not be read."""
    failures: Path
    """File that lists these recordings, each with the reason."""


@dataclass(frozen=True)
class AudioShard:
    """A shard and its recordings."""

    folder: Path
    number: int
    recordings: tuple[Recording, ...]
    rate_hz: int | None

    @property
    def path(self) -> Path:
        """File of the shard."""
        return self.folder / f"shard-{self.number:05d}.array_record"

    @property
    def listing(self) -> Path:
        """Manifest of this shard. It is written last, and it exists only if the shard is complete."""
        return self.path.with_suffix(".jsonl")

    @property
    def complete(self) -> bool:
        """Whether the shard was written."""
        return self.listing.is_file() and self.path.is_file()


def prepare(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    options: PrepareOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> PrepareReport:
    """Pack recordings into shards. After an interruption, the same call writes the missing shards.

    Args:
        inputs: local folders of recordings, or manifests.
        output: folder for the shards and their `manifest.jsonl`.
        options: defaults to `PrepareOptions()`.
        progress: called with a `RunMessage`, then with a `PrepareProgress` at the start and for each complete shard.

    Raises:
        AudioError: no recordings are found, `ids` is wrong, or the folder has shards of other inputs or options.
        OSError: a shard cannot be written. Complete shards remain.
    """
    options, report = options or PrepareOptions(), progress or ignore
    report(RunMessage("listing the recordings", "phase"))
    shards = plan_shards([Path(path) for path in one_or_more(inputs)], Path(output), options)
    total, done, seconds = sum(len(shard.recordings) for shard in shards), 0, 0.0

    def add(shard: AudioShard, shard_seconds: float) -> None:
        nonlocal done, seconds
        done, seconds = done + len(shard.recordings), seconds + shard_seconds
        report(PrepareProgress(done, total, seconds / 3600))

    report(PrepareProgress(0, total, 0.0))
    missing = [shard for shard in shards if not shard.complete]
    for shard in shards:
        if shard not in missing:
            add(shard, sum(line["seconds"] for line in _lines(shard.listing)))
    write_shards(missing, options.workers, add)
    lines = [line for shard in shards for line in _lines(shard.listing)]
    failures = [line for line in lines if "error" in line]
    write_lines(Path(output) / MANIFEST, (line for line in lines if "error" not in line))
    write_lines(Path(output) / FAILURES, failures)
    return PrepareReport(
        output=Path(output),
        shards=len(shards),
        recordings=len(lines) - len(failures),
        hours=seconds / 3600,
        failed=len(failures),
        failures=Path(output) / FAILURES,
    )


def plan_shards(inputs: Sequence[Path], folder: Path, options: PrepareOptions) -> list[AudioShard]:
    """Assign recordings to shards. The same inputs and options give the same plan, so that a call can resume.

    Raises:
        AudioError: no recordings are found, an id is unknown, ambiguous or repeated, or the folder has shards of other
            inputs or options.
    """
    found = [recording for recording in find(inputs) if recording.record is None]
    if not found:
        raise AudioError("these inputs are already shards, which training reads directly")
    if options.ids is not None:
        found = choose(found, Path(options.ids))
    per_shard = options.per_shard
    listed = json.dumps([[r.id, r.path] for r in found] + [per_shard, options.rate_hz])
    fingerprint = hashlib.sha256(listed.encode()).hexdigest()
    kept = folder / PLAN
    if kept.is_file() and json.loads(kept.read_text())["fingerprint"] != fingerprint:
        message = f"{folder} contains shards of other recordings or options; give an empty folder"
        raise AudioError(message, parameter="output")
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(kept) as part:
        part.write_text(json.dumps({"fingerprint": fingerprint, "recordings": len(found)}) + "\n")
    pieces = [tuple(found[at : at + per_shard]) for at in range(0, len(found), per_shard)]
    return [AudioShard(folder, number, piece, options.rate_hz) for number, piece in enumerate(pieces)]


def choose(found: Sequence[Recording], ids: Path) -> list[Recording]:
    """Select the recordings that a file lists by their ids, or by the last components of their ids.

    Raises:
        AudioError: the file is not text or lists nothing, or an id is unknown, ambiguous or repeated.
    """
    try:
        lines = [line.strip() for line in ids.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise AudioError(f"{ids} is not a text file of ids, one per line") from error
    wanted = [line for line in lines if line and not line.startswith("#")]
    named: dict[str, set[Recording]] = {}
    for recording in found:
        for name in {recording.id, Path(recording.id).name}:
            named.setdefault(name, set()).add(recording)
    repeated = [name for name, count in Counter(wanted).items() if count > 1]
    missing = [name for name in wanted if name not in named]
    ambiguous = [name for name in wanted if len(named.get(name, ())) > 1]
    for names, what in (
        (repeated, "are listed more than once"),
        (missing, "are not in the inputs"),
        (ambiguous, "match several recordings of the inputs"),
    ):
        if names:
            raise AudioError(f"{len(names)} ids of {ids} {what}, such as {', '.join(names[:3])}", parameter="ids")
    if not wanted:
        raise AudioError(f"{ids} lists no ids; it needs one id per line", parameter="ids")
    return [recording for name in wanted for recording in named[name]]


def write_shards(shards: Sequence[AudioShard], workers: int, done: Callable[[AudioShard, float], None]) -> None:
    """Write shards in several processes.

    Args:
        shards: the shards.
        workers: number of processes.
        done: called with each complete shard and its seconds of audio.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(workers, len(shards))), mp_context=context) as pool:
        jobs = {pool.submit(write_shard, shard): shard for shard in shards}
        try:
            for job in as_completed(jobs):
                done(jobs[job], job.result())
        except BrokenProcessPool as error:
            raise FocalCodecError(
                "a worker process ended early. It ran out of memory, or a script called this function outside "
                '`if __name__ == "__main__":`. Complete shards remain',
                parameter="workers",
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def write_shard(shard: AudioShard) -> float:
    """Write one shard and its manifest, which also names unreadable recordings. Returns the seconds of audio."""
    from array_record.python.array_record_module import ArrayRecordWriter

    lines, record = [], 0
    with written_whole(shard.path) as part:
        # The groups have one record, because training reads records in any order.
        writer = ArrayRecordWriter(str(part), "group_size:1")
        for recording in shard.recordings:
            try:
                content, samples, rate_hz = encode_flac(recording, shard.rate_hz)
            except AudioError as error:
                lines.append({"id": recording.id, "error": str(error), "seconds": 0.0, "shard": shard.path.name})
                continue
            entry = {"id": recording.id, "samples": samples, "rate_hz": rate_hz, "seconds": samples / rate_hz}
            with as_os_error(part):
                writer.write(pack(entry, content))
            lines.append({**entry, "shard": shard.path.name, "record": record})
            record += 1
        with as_os_error(part):
            writer.close()
    write_lines(shard.listing, lines)
    return sum(line["seconds"] for line in lines)


def encode_flac(recording: Recording, rate_hz: int | None) -> tuple[bytes, int, int]:
    """Encode a recording as 16-bit mono FLAC. A file that already has this format is copied.

    Returns:
        The content of the FLAC file, the number of samples, and the sample rate in Hz.

    Raises:
        AudioError: the recording is missing, unreadable, empty, or not finite.
    """
    with open_recording(recording) as file:
        rate = rate_hz or file.samplerate
        first, frames = span(recording, file)
        sig = audio.read_part(file, recording.source, rate, start=first, frames=frames, channel=recording.channel)
        found = file.format, file.subtype, file.channels, file.samplerate, frames
        if (
            found == ("FLAC", "PCM_16", 1, rate, file.frames)
            and recording.member is None
            and os.path.isfile(recording.path)
        ):
            return Path(recording.path).read_bytes(), len(sig), rate
    content = io.BytesIO()
    soundfile.write(content, np.clip(sig, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return content.getvalue(), len(sig), rate


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
