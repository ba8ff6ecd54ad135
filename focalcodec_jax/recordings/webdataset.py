"""WebDataset tars: audio files, each with optional `.json` and `.txt` files of the same key."""

import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from focalcodec_jax.files import filesystem, is_url
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.recording import Recording, legible, printable


@dataclass
class _Contents:
    """Recordings and columns that were found in a tar so far."""

    recordings: dict[str, Recording] = field(default_factory=dict)
    """Recordings by member name."""
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Columns by key."""
    problems: dict[str, str] = field(default_factory=dict)
    """Reasons why a `.json` or `.txt` file is unreadable, by key."""


def list_tar(path: str, size: int) -> list[Recording]:
    """List the audio in a tar. If the tar is incomplete, the list contains a recording with a `problem`.

    Args:
        path: path or URL of the tar.
        size: bytes of the tar, or 0 if unknown.
    """
    contents, problem = _Contents(), None
    try:
        with filesystem(path)[0].open(path, "rb") if is_url(path) else open(path, "rb") as file:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - `file` is closed instead
            for member in archive:
                if not member.isfile():
                    continue
                if not audio.is_audio_name(member.name):
                    _read_columns(archive, member, path, contents)
                elif size and member.offset_data + member.size > size:
                    problem = "its last file is cut short"
                else:
                    contents.recordings[member.name] = _recording(path, member, contents)
    except (tarfile.TarError, OSError, ValueError) as error:
        problem = str(error)
    problems = contents.problems
    found = [replace(r, problem=problems.get(_key(name))) for name, r in contents.recordings.items()]
    if problem is not None or not found:
        problem = f"{path} is not a whole tar with audio in it: {problem or 'no file in it is named as audio'}"
        found.append(Recording(printable(path), path, problem=problem))
    return found


def _recording(path: str, member: tarfile.TarInfo, contents: _Contents) -> Recording:
    return Recording(
        printable(f"{os.path.splitext(path)[0]}/{os.path.splitext(member.name)[0]}"),
        path,
        size=member.size,
        member=member.name,
        offset=member.offset_data,
        # shared with later `.json` and `.txt` files of the key
        columns=contents.columns.setdefault(_key(member.name), {}),
    )


def _read_columns(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, contents: _Contents) -> None:
    if not member.name.endswith((".json", ".txt")):
        return
    content = archive.extractfile(member)
    assert content is not None
    key = _key(member.name)
    try:
        contents.columns.setdefault(key, {}).update(_columns(member.name, content.read()))
    except ValueError as error:
        contents.problems[key] = f"{path}/{member.name} is not readable: {error}"


def _key(member: str) -> str:
    """The key of a member, which WebDataset defines as its name up to the first dot."""
    folder, name = os.path.split(member)
    return os.path.join(folder, name.split(".", 1)[0])


def _columns(name: str, content: bytes) -> Mapping[str, Any]:
    text = content.decode("utf-8")
    if name.endswith(".txt"):
        return {"text": text}
    value = legible(json.loads(text))
    return value if isinstance(value, dict) else {"json": value}
