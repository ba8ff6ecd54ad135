"""Find recordings in folders, globs, manifests, ArrayRecord shards and tars, on local disks or at URLs."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

from focalcodec_jax.errors import AudioError
from focalcodec_jax.files import ASSETS, filesystem, is_url
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.manifests import from_entry, is_manifest_name, read_manifest
from focalcodec_jax.recordings.recording import Recording, headers, num_samples, printable
from focalcodec_jax.recordings.webdataset import list_tar

MANIFEST = "manifest.jsonl"
"""If a folder contains a file of this name, the recordings are those of this manifest."""
SAMPLE_INPUT = "sample"
"""This input selects the speech sample in the package, unless a file or folder has this name."""


def find(inputs: Sequence[str | Path], workers: int = 8) -> list[Recording]:
    """Find all recordings of the inputs with their lengths, in the order of the inputs.

    Args:
        inputs: folders, audio files, globs, manifests, ArrayRecord shards or tars, as paths or URLs.
        workers: number of threads that read file headers.

    Raises:
        AudioError: an input does not exist or is empty, a manifest entry is invalid, or an id occurs twice.
    """
    found = list_recordings(inputs)
    for recording in found:
        if recording.problem is not None:
            raise AudioError(recording.problem)
    with ThreadPoolExecutor(workers) as pool:
        lengths = pool.map(lambda recording: recording.samples or num_samples(recording), found)
        return [replace(recording, samples=samples) for recording, samples in zip(found, lengths, strict=True)]


def list_recordings(inputs: Sequence[str | Path]) -> list[Recording]:
    """List all recordings of the inputs without opening audio files, in the order of the inputs.

    A recording has a `problem` if the listing shows that it is unreadable, or if it repeats an id.

    Raises:
        AudioError: an input does not exist, is of an unknown kind, or is empty.
        ConfigError: a URL is of an unknown kind, or needs a package that is not installed.
    """
    if not inputs:
        raise AudioError("no inputs are given")
    found: list[Recording] = []
    first: dict[str, Recording] = {}
    for path in inputs:
        for recording in _recordings(str(path)):
            other = first.setdefault(recording.id, recording)
            if other is not recording and recording.problem is None:
                problem = f"two recordings have the id {recording.id!r}: {other.source} and {recording.source}"
                recording = replace(recording, problem=problem)
            found.append(recording)
    for example in {r.path.split("://")[0]: r.path for r in found if is_url(r.path)}.values():
        filesystem(example)  # report a missing package once, before any recording is read
    return found


def _recordings(path: str) -> Iterable[Recording]:
    if path == SAMPLE_INPUT and not os.path.exists(path):
        path = str(ASSETS)
    if glob.has_magic(path) and not os.path.exists(path):
        return [
            recording
            for match, size in _matches(path)
            for recording in (_recordings(match) if size is None else _in_file(match, size))
        ]
    files = _files(path)
    if files is None:
        return _in_file(path, _size(path))
    base = path.rstrip("/") + "/"
    if base + MANIFEST in files:
        return _in_file(base + MANIFEST, 0)
    found = [
        recording
        for name, size in sorted(files.items())
        for recording in (_unreadable_folder(name, size) if isinstance(size, OSError) else _in_file(name, size, base))
    ]
    times = Counter(recording.id for recording in found)
    # Files that differ only in their ending, such as a.wav and a.flac, get ids with the ending.
    found = [
        replace(r, id=printable(r.path.removeprefix(base))) if times[r.id] > 1 and r.member is None else r
        for r in found
    ]
    if not found:
        raise AudioError(f"{path} contains no audio files; looked for names ending in .wav, .flac, .mp3, .ogg, …")
    return found


def _unreadable_folder(folder: str, error: OSError) -> list[Recording]:
    return [Recording(printable(folder), folder, problem=f"{printable(folder)} cannot be listed: {error.strerror}")]


def _matches(pattern: str) -> list[tuple[str, int | None]]:
    """Paths that match a pattern. Remote files come with their sizes from the listing, which saves a call per file."""
    if is_url(pattern):
        files, inside = filesystem(pattern)
        entries = sorted(files.glob(inside, detail=True).items())
        matches = [(files.unstrip_protocol(n), e.get("size") or 0 if e["type"] == "file" else None) for n, e in entries]
    else:
        matches = [(name, None) for name in sorted(glob.glob(pattern, recursive=True))]
    if not matches:
        raise AudioError(f"nothing matches {pattern}")
    return matches


def _files(path: str) -> dict[str, int | OSError] | None:
    """All files below a folder with their sizes. A subfolder that cannot be listed has an error in place of a size.

    Returns:
        None if the path is not a folder.

    Raises:
        AudioError: the path does not exist.
    """
    if is_url(path):
        files, inside = filesystem(path)
        found = files.find(inside, detail=True)
        if not found:
            raise AudioError(f"{path} does not exist, or is empty")
        if list(found) == [inside]:
            return None
        return {files.unstrip_protocol(name): entry.get("size") or 0 for name, entry in found.items()}
    if not os.path.lexists(path):
        raise AudioError(f"{path} does not exist; give a folder of recordings, or a manifest (.csv, .jsonl)")
    return dict(_walk(path.rstrip("/"))) if os.path.isdir(path) else None


def _walk(folder: str) -> Iterator[tuple[str, int | OSError]]:
    """Yield all files below a folder with their sizes. Links are followed, and each folder is visited once.

    Broken links and empty folders with an audio name are also yielded, so that reading them reports the problem.
    """
    seen = set()
    closed: list[OSError] = []
    for here, folders, names in os.walk(folder, followlinks=True, onerror=closed.append):
        identity = os.stat(here).st_dev, os.stat(here).st_ino
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders.sort()
        for name in names:
            path = os.path.join(here, name)
            yield path, _size(path)
        if not folders and not names and audio.is_audio_name(here):
            yield here, 0
    for error in closed:
        yield error.filename, error


def _size(path: str) -> int:
    """Size of a file in bytes, or 0 if it is unknown."""
    try:
        return filesystem(path)[0].size(path) or 0 if is_url(path) else os.stat(path).st_size
    except OSError:
        return 0


def _in_file(path: str, size: int, base: str | None = None) -> Iterable[Recording]:
    """The recordings of a file: the audio itself, the members of a tar or shard, or the entries of a manifest.

    Args:
        path: path or URL of the file.
        size: bytes of the file, or 0 if unknown.
        base: folder in which the file was found. Files of other kinds in a folder are skipped.
    """
    name = PurePosixPath(path).name.lower()
    if name.endswith(".array_record"):
        return _in_shard(path)
    if name.endswith(".tar"):
        return list_tar(path, _size(path))
    if audio.is_audio_name(name):
        inside = path.removeprefix(base) if base else path
        return [Recording(printable(os.path.splitext(inside)[0]), path, size=size)]
    if base is not None:
        return []
    if is_manifest_name(name):
        rows = list(read_manifest(path))
        if not rows:
            raise AudioError(f"{path} lists no recordings")
        return rows
    raise AudioError(
        f"{path} is neither a folder, audio, a manifest (.csv, .jsonl), ArrayRecord shards (.array_record) nor a .tar"
    )


def _in_shard(path: str) -> list[Recording]:
    try:
        entries = headers(path)
    except AudioError as error:
        return [Recording(printable(path), path, problem=str(error))]
    return [from_entry({**entry, "shard": path, "record": place}, "", path) for place, entry in enumerate(entries)]
