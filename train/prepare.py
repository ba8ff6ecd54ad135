"""Packing a corpus into ArrayRecord shards of FLAC."""

import errno
import hashlib
import io
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from focalcodec_jax.errors import AudioError
from focalcodec_jax.files import write_lines, written_whole
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.recording import Recording, open_recording as opened, pack, span
from focalcodec_jax.recordings.sources import MANIFEST, find

PLAN = "prepare.json"
FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Shard:
    """A shard to write, and what is to be in it."""

    folder: Path
    number: int
    recordings: tuple[Recording, ...]
    rate_hz: int | None

    @property
    def path(self) -> Path:
        return self.folder / f"shard-{self.number:05d}.array_record"

    @property
    def listing(self) -> Path:
        """Manifest of this shard alone; it is written last, and says that the shard is whole."""
        return self.path.with_suffix(".jsonl")


def plan(inputs: Sequence[Path], folder: Path, *, per_shard: int, rate_hz: int | None, ids: Path | None) -> list[Shard]:
    """What to pack into which shard. The same inputs give the same plan, so that an interrupted run goes on.

    Args:
        ids: a text file, one id a line, of the recordings to take; all without it.

    Raises:
        AudioError: nothing is found, an id is not there, twice there or listed twice, or the folder holds shards of
            other inputs.
    """
    found = [recording for recording in find(inputs) if recording.record is None]
    if not found:
        raise AudioError("these inputs are shards already; training reads them as they are")
    if ids is not None:
        found = chosen(found, ids)
    listed = json.dumps([[r.id, r.path] for r in found] + [per_shard, rate_hz])
    fingerprint = hashlib.sha256(listed.encode()).hexdigest()
    kept = folder / PLAN
    if kept.is_file() and json.loads(kept.read_text())["fingerprint"] != fingerprint:
        raise AudioError(f"{folder} holds shards of other recordings or options; give an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(kept) as part:
        part.write_text(json.dumps({"fingerprint": fingerprint, "recordings": len(found)}) + "\n")
    pieces = [tuple(found[at : at + per_shard]) for at in range(0, len(found), per_shard)]
    return [Shard(folder, number, piece, rate_hz) for number, piece in enumerate(pieces)]


def chosen(found: Sequence[Recording], ids: Path) -> list[Recording]:
    """The recordings that a file lists, by id or by the last part of it."""
    try:
        lines = [line.strip() for line in ids.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise AudioError(f"{ids} is not a text file of ids, one a line") from error
    wanted = [line for line in lines if line and not line.startswith("#")]
    named: dict[str, set[Recording]] = {}
    for recording in found:
        for name in {recording.id, Path(recording.id).name}:
            named.setdefault(name, set()).add(recording)
    repeated = [name for name, count in Counter(wanted).items() if count > 1]
    missing = [name for name in wanted if name not in named]
    unclear = [name for name in wanted if len(named.get(name, ())) > 1]
    for names, what in (
        (repeated, "come more than once in it"),
        (missing, "are not in the inputs"),
        (unclear, "mean several recordings of the inputs"),
    ):
        if names:
            raise AudioError(f"{len(names)} ids of {ids} {what}, such as {', '.join(names[:3])}")
    if not wanted:
        raise AudioError(f"{ids} lists no ids; it has one a line")
    return [recording for name in wanted for recording in named[name]]


def prepare(shards: Sequence[Shard], workers: int) -> Iterator[tuple[int, float]]:
    """Write the shards that are not there yet, several at a time; then the manifest of all.

    Yields:
        Recordings and seconds of audio of each shard as it is done, those already there first.

    Raises:
        OSError: a shard could not be written; those written stay, and the same call goes on.
    """
    missing = [shard for shard in shards if not (shard.listing.is_file() and shard.path.is_file())]
    for shard in shards:
        if shard not in missing:
            yield len(shard.recordings), sum(line["seconds"] for line in _lines(shard.listing))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(workers, len(missing))), mp_context=context) as pool:
        jobs = {pool.submit(write, shard): shard for shard in missing}
        try:
            for job in as_completed(jobs):
                seconds = job.result()
                yield len(jobs[job].recordings), seconds
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    folder = shards[0].folder
    lines = [line for shard in shards for line in _lines(shard.listing)]
    for name, failed in ((MANIFEST, False), (FAILURES, True)):
        write_lines(folder / name, (line for line in lines if ("error" in line) == failed))


def write(shard: Shard) -> float:
    """Write one shard and its listing; returns its seconds of audio. Recordings that cannot be read are listed."""
    from array_record.python.array_record_module import ArrayRecordWriter

    lines, record = [], 0
    with written_whole(shard.path) as part:
        # one record a group: training reads them in any order
        writer = ArrayRecordWriter(str(part), "group_size:1")
        for recording in shard.recordings:
            try:
                content, samples, rate_hz = flac(recording, shard.rate_hz)
            except AudioError as error:
                lines.append({"id": recording.id, "error": str(error), "seconds": 0.0, "shard": shard.path.name})
                continue
            entry = {"id": recording.id, "samples": samples, "rate_hz": rate_hz, "seconds": samples / rate_hz}
            with _as_os_error(part):
                writer.write(pack(entry, content))
            lines.append({**entry, "shard": shard.path.name, "record": record})
            record += 1
        with _as_os_error(part):
            writer.close()
    write_lines(shard.listing, lines)
    return sum(line["seconds"] for line in lines)


@contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """ArrayRecord says of a full disk what the system says, but as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error


def flac(recording: Recording, rate_hz: int | None) -> tuple[bytes, int, int]:
    """A recording as 16-bit FLAC of one channel, its samples and its rate. One that is that already stays as it is.

    Raises:
        AudioError: missing, unreadable, empty, or not finite.
    """
    with opened(recording) as file:
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
