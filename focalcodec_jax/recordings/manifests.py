"""Manifests of recordings: CSV or JSON lines with a path in each entry, and manifests of Lhotse."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import AudioError
from focalcodec_jax.files import filesystem, is_url
from focalcodec_jax.recordings import lhotse
from focalcodec_jax.recordings.recording import Recording, legible, printable

PATH_KEYS = ("path", "audio", "audio_filepath", "shard")
OWN_KEYS = {*PATH_KEYS, "id", "record", "samples", "rate_hz", "seconds", "offset"}
"""Columns with the location of a recording. All other columns are kept in `Recording.columns`."""


def is_manifest_name(name: str) -> bool:
    """Whether a file name has the extension of a manifest."""
    return name.removesuffix(".gz").endswith((".jsonl", ".csv"))


def read_manifest(path: str) -> Iterator[Recording]:
    """Read the entries of a manifest. An invalid entry is a recording with a `problem`.

    Paths are relative to the manifest. In Lhotse's manifests they are relative to the working directory.

    Raises:
        AudioError: the manifest is not UTF-8, or cannot be read to its end.
    """
    compressed, is_csv = path.endswith(".gz"), path.removesuffix(".gz").endswith(".csv")
    with filesystem(path)[0].open(path, "rb") if is_url(path) else open(path, "rb") as file:
        content = gzip.GzipFile(fileobj=file) if compressed else file
        lines = io.TextIOWrapper(content, "utf-8-sig", newline="")  # spreadsheets write a byte-order mark
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
        problem = f"{where} is not one JSON object per line: {str(row).strip()[:80]!r}"
        return Recording(where, path, problem=problem)
    return lhotse.recording(row, where) if lhotse.is_lhotse(row) else from_entry(row, os.path.dirname(path), where)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return line


def from_entry(row: Mapping[str, Any], folder: str, where: str) -> Recording:
    """The recording that an entry describes. If the entry is invalid, the recording has a `problem`.

    Args:
        row: the entry, by column.
        folder: folder that the path in the entry is relative to.
        where: name of the entry in error messages.
    """
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
        id_ = os.path.splitext(name)[0]
        if row.get("offset") not in (None, ""):  # the manifest may list several parts of the file
            id_ += f"-{row['offset']}-{row.get('duration')}"
    id_ = printable(str(id_))
    own = {name: value for name, value in row.items() if name not in OWN_KEYS and name is not None}
    fields: dict[str, Any] = {"columns": legible(own)}
    try:
        fields |= _numbers(row)
    except (ValueError, TypeError, KeyError, ZeroDivisionError, OverflowError) as error:
        problem = f"{id_}: record, samples and rate_hz are integers, offset and duration come together ({error})"
        return Recording(id_, path, problem=problem)
    return Recording(id_, path, **fields)


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if row.get("record") is not None:
        fields["record"] = int(row["record"])
    if row.get("samples") and row.get("rate_hz"):
        fields["samples"] = round(int(row["samples"]) / int(row["rate_hz"]) * SAMPLE_RATE_HZ)
    if row.get("offset") not in (None, ""):
        fields |= {"start": float(row["offset"]), "duration": float(row["duration"])}
        fields["samples"] = round(fields["duration"] * SAMPLE_RATE_HZ)
    return fields
