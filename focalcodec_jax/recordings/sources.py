"""Finding recordings: in folders, globs, manifests, shards and tars, on this machine or behind a URL."""

import csv
import glob
import gzip
import io
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import AudioError
from focalcodec_jax.files import ASSETS, filesystem, is_url
from focalcodec_jax.recordings import audio, lhotse
from focalcodec_jax.recordings.recording import Recording, headers, legible, num_samples, printable

MANIFEST = "manifest.jsonl"
SAMPLE = "sample"
"""In place of a folder: the speech in this package."""
SHARD, TAR = ".array_record", ".tar"
PATH_KEYS = ("path", "audio", "audio_filepath", "shard")
OWN_KEYS = {*PATH_KEYS, "id", "record", "samples", "rate_hz", "seconds", "offset"}
"""Columns of a manifest that say where a recording lies; all others stay with it."""


def find(inputs: Sequence[str | Path], workers: int = 8) -> list[Recording]:
    """All recordings of some inputs, in the order given, with their lengths.

    Raises:
        AudioError: an input does not exist or holds nothing, a manifest has no path column, or an id comes twice.
    """
    found = listed(inputs)
    for recording in found:
        if recording.problem is not None:
            raise AudioError(recording.problem)
    with ThreadPoolExecutor(workers) as pool:
        lengths = pool.map(lambda recording: recording.samples or num_samples(recording), found)
        return [replace(recording, samples=samples) for recording, samples in zip(found, lengths, strict=True)]


def listed(inputs: Sequence[str | Path]) -> list[Recording]:
    """All recordings of some inputs, in the order given; their files are not opened.

    What cannot be read, as far as a listing shows, is in it with its `problem`; so is what has another's id.

    Raises:
        AudioError: an input does not exist, is of no known kind, or holds nothing.
        ConfigError: a URL is of no known kind, or needs a package that is not installed.
    """
    found: list[Recording] = []
    first: dict[str, Recording] = {}
    for path in inputs:
        for recording in _listed(str(path)):
            other = first.setdefault(recording.id, recording)
            if other is not recording and recording.problem is None:
                problem = f"two recordings have the id {recording.id!r}: {other.source} and {recording.source}"
                recording = replace(recording, problem=problem)
            found.append(recording)
    for example in {r.path.split("://")[0]: r.path for r in found if is_url(r.path)}.values():
        filesystem(example)  # at once, not for each recording
    return found


def _listed(path: str) -> Iterable[Recording]:
    if path == SAMPLE and not os.path.exists(path):
        path = str(ASSETS)
    if glob.has_magic(path) and not os.path.exists(path):
        return [
            recording
            for match, size in _matches(path)
            for recording in (_listed(match) if size is None else _file(match, size))
        ]
    files = _files(path)
    if files is None:
        return _file(path, _size(path))
    base = path.rstrip("/") + "/"
    if base + MANIFEST in files:
        return _file(base + MANIFEST, 0)
    found = [
        recording
        for name, size in sorted(files.items())
        for recording in (_unlisted(name, size) if isinstance(size, OSError) else _file(name, size, base))
    ]
    times = Counter(recording.id for recording in found)
    # the same recording in two formats, perhaps: their endings tell them apart
    found = [
        replace(r, id=printable(r.path.removeprefix(base))) if times[r.id] > 1 and r.member is None else r
        for r in found
    ]
    if not found:
        raise AudioError(f"{path} holds no audio files; looked for names ending in .wav, .flac, .mp3, .ogg, …")
    return found


def _unlisted(folder: str, error: OSError) -> list[Recording]:
    return [Recording(printable(folder), folder, problem=f"{printable(folder)} cannot be listed: {error.strerror}")]


def _matches(pattern: str) -> list[tuple[str, int | None]]:
    """What matches; of remote files with the size, which the listing tells, so that none is asked for by itself."""
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
    """Files below a folder and their sizes, and folders that cannot be listed; None for what is not a folder.

    Raises:
        AudioError: there is no such path.
    """
    if is_url(path):
        files, inside = filesystem(path)
        found = files.find(inside, detail=True)
        if not found:
            raise AudioError(f"{path} does not exist, or holds nothing")
        if list(found) == [inside]:
            return None
        return {files.unstrip_protocol(name): entry.get("size") or 0 for name, entry in found.items()}
    if not os.path.lexists(path):
        raise AudioError(f"{path} does not exist; give a folder of recordings, or a manifest (.csv, .jsonl)")
    return dict(_walk(path.rstrip("/"))) if os.path.isdir(path) else None


def _walk(folder: str) -> Iterator[tuple[str, int | OSError]]:
    """Files and their sizes, through links to folders too, each folder once. A folder that is named as audio and
    holds none, or a link to nothing, is listed as if it were a recording, to be named when it is read."""
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
    """Bytes of a file; 0 where they cannot be asked."""
    try:
        return filesystem(path)[0].size(path) or 0 if is_url(path) else os.stat(path).st_size
    except OSError:
        return 0


def _file(path: str, size: int, base: str | None = None) -> Iterable[Recording]:
    """Recordings of a file: itself, those in it, or those it lists. Below the folder `base` only audio counts."""
    name = PurePosixPath(path).name.lower()
    if name.endswith(SHARD):
        return _shard(path)
    if name.endswith(TAR):
        return _tar(path)
    if audio.is_audio_name(name):
        inside = path.removeprefix(base) if base else path
        return [Recording(printable(_stem(inside)), path, size=size)]
    if base is not None:
        return []
    if name.removesuffix(".gz").endswith((".jsonl", ".csv")):
        rows = list(_manifest(path))
        if not rows:
            raise AudioError(f"{path} lists no recordings")
        return rows
    raise AudioError(
        f"{path} is neither a folder, audio, a manifest (.csv, .jsonl), ArrayRecord shards (.array_record) nor a .tar"
    )


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _shard(path: str) -> list[Recording]:
    try:
        entries = headers(path)
    except AudioError as error:
        return [Recording(printable(path), path, problem=str(error))]
    return [_row({**entry, "shard": path, "record": place}, "", path) for place, entry in enumerate(entries)]


def _tar(path: str) -> list[Recording]:
    """Audio in a WebDataset tar. Files of one key lie side by side; `.json` and `.txt` ones are columns of it."""
    found: dict[str, Recording] = {}
    columns: dict[str, dict[str, Any]] = {}
    broken: dict[str, str] = {}
    """Problems of what lies beside audio, by its key."""
    problem, size = None, _size(path)
    try:
        with filesystem(path)[0].open(path, "rb") if is_url(path) else open(path, "rb") as file:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the file under it is closed
            for member in archive:
                if not member.isfile():
                    continue
                name = os.path.basename(member.name)
                key = _key(member.name)
                if audio.is_audio_name(name):
                    id_ = printable(f"{_stem(path)}/{_stem(member.name)}")
                    where = {"size": member.size, "member": member.name, "offset": member.offset_data}
                    if size and member.offset_data + member.size > size:
                        problem = "its last file is cut short"
                        continue
                    found[member.name] = Recording(id_, path, columns=columns.setdefault(key, {}), **where)
                elif name.endswith((".json", ".txt")):
                    content = archive.extractfile(member)
                    assert content is not None
                    try:
                        columns.setdefault(key, {}).update(_sidecar(name, content.read()))
                    except ValueError as error:
                        broken[key] = f"{path}/{member.name} is not readable: {error}"
    except (tarfile.TarError, OSError, ValueError) as error:
        problem = str(error)
    recordings = [replace(r, problem=broken.get(_key(name))) for name, r in found.items()]
    if problem is not None or not recordings:
        problem = f"{path} is not a whole tar with audio in it: {problem or 'no file in it is named as audio'}"
        recordings.append(Recording(printable(path), path, problem=problem))
    return recordings


def _key(member: str) -> str:
    """WebDataset's: the name up to its first dot."""
    folder, name = os.path.split(member)
    return os.path.join(folder, name.split(".", 1)[0])


def _sidecar(name: str, content: bytes) -> Mapping[str, Any]:
    text = content.decode("utf-8")
    if name.endswith(".txt"):
        return {"text": text}
    found = legible(json.loads(text))
    return found if isinstance(found, dict) else {"json": found}


def _manifest(path: str) -> Iterator[Recording]:
    """Rows of a manifest. Paths in it are relative to it, in Lhotse's to the working directory."""
    compressed, is_csv = path.endswith(".gz"), path.removesuffix(".gz").endswith(".csv")
    with filesystem(path)[0].open(path, "rb") if is_url(path) else open(path, "rb") as file:
        content = gzip.GzipFile(fileobj=file) if compressed else file
        lines = io.TextIOWrapper(content, "utf-8-sig", newline="")  # spreadsheets put a mark before the first column
        rows: Iterable[Any] = csv.DictReader(lines, strict=True) if is_csv else map(_json, filter(str.strip, lines))
        number = 0
        try:
            for number, row in enumerate(rows, 1):
                yield _entry(row, path, f"{path}, entry {number}")
        except UnicodeDecodeError as error:
            raise AudioError(f"{path} is not text in UTF-8: {error}") from error
        except (OSError, EOFError, zlib.error, csv.Error) as error:
            raise AudioError(f"{path} cannot be read past entry {number}: {error}") from error


def _entry(row: Any, path: str, where: str) -> Recording:
    if not isinstance(row, dict):
        problem = f"{where} is not one JSON object a line: {str(row).strip()[:80]!r}"
        return Recording(where, path, problem=problem)
    return lhotse.recording(row, where) if lhotse.is_lhotse(row) else _row(row, os.path.dirname(path), where)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return line


def _row(row: Mapping[str, Any], folder: str, where: str) -> Recording:
    """A recording by its entry in a manifest; where that is wrong, with its problem."""
    key = next((key for key in PATH_KEYS if row.get(key)), None)
    if key is None:
        columns = ", ".join(map(str, row))
        return Recording(where, where, problem=f"{where}: no path, audio or audio_filepath among {columns}")
    name = row[key]
    if not isinstance(name, str):
        return Recording(where, where, problem=f"{where}: {key} is {name!r:.60}, not the path of a file")
    path = name if is_url(name) or not folder else os.path.join(folder, name)
    id_ = row.get("id")
    if id_ in (None, ""):
        id_ = _stem(name)
        if row.get("offset") not in (None, ""):  # one of several parts of the file, perhaps
            id_ += f"-{row['offset']}-{row.get('duration')}"
    id_ = printable(str(id_))
    fields: dict[str, Any] = {"columns": _own_columns(row)}
    try:
        if row.get("record") is not None:
            fields["record"] = int(row["record"])
        if row.get("samples") and row.get("rate_hz"):
            fields["samples"] = round(int(row["samples"]) / int(row["rate_hz"]) * SAMPLE_RATE_HZ)
        if row.get("offset") not in (None, ""):
            fields |= {"start": float(row["offset"]), "duration": float(row["duration"])}
            fields["samples"] = round(fields["duration"] * SAMPLE_RATE_HZ)
    except (ValueError, TypeError, KeyError, ZeroDivisionError, OverflowError) as error:
        problem = f"{id_}: record, samples and rate_hz are integers, offset and duration come together ({error})"
        return Recording(id_, path, problem=problem)
    return Recording(id_, path, **fields)


def _own_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    return legible({name: value for name, value in row.items() if name not in OWN_KEYS and name is not None})
