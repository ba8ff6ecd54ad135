"""Common parts of all formats of token data sets: the record that describes a format, file names, and columns."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from focalcodec_jax.errors import TokenError, require
from focalcodec_jax.files import Folder
from focalcodec_jax.recordings.recording import Recording

INFO, FAILURES = "dataset_info.json", "failures.jsonl"
OWN_COLUMNS = ("id", "tokens", "duration", "source")
NAME_BYTES = 200
"""Maximum length of a path component made from an id. File systems allow 255 bytes, and temporary names are longer."""
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError)
"""Errors that the readers of the formats raise for truncated or foreign files."""

Columns = dict[str, pa.DataType]
"""Names and types of the columns that come from manifests."""


@dataclass(frozen=True)
class TokenizedRecording:
    """A recording and its tokens, to be written to a data set."""

    recording: Recording
    tokens: np.ndarray
    """(tokens,) unsigned integers."""
    duration: float
    """Seconds of audio."""


class TokenSequence(NamedTuple):
    """The id and the tokens of a recording, as read from a data set."""

    id: str
    tokens: np.ndarray
    """(tokens,) integers."""


@dataclass(frozen=True)
class ShardFile:
    """The file of a shard in a finished data set."""

    files: Any
    """The fsspec file system."""
    root: str
    """Folder of the data set in that file system."""
    name: str
    """Path of the file below the folder."""

    @property
    def path(self) -> str:
        """Path of the file in the file system."""
        return f"{self.root}/{self.name}"

    def open(self) -> Any:
        """Open the file for reading bytes."""
        return self.files.open(self.path)

    def size(self) -> int:
        """Size of the file in bytes."""
        return self.files.size(self.path)


@dataclass(frozen=True)
class TokenFormat:
    """A format of token data sets. `formats/__init__.py` lists all of them.

    A block is the unit of random access. A shard is read in blocks, and a block is read as a whole.

    Attributes:
        name: name in options and in `dataset_info.json`.
        title: name in messages.
        extension: file extension of a shard, without the dot.
        write: writes a shard to the folder of a data set under the given name. Every file appears whole or not at all.
        count_blocks: returns the number of blocks of a shard.
        read_block: yields the token sequences of one block.
        datasets_loader: name of the format in `datasets.load_dataset`. None if `datasets` cannot load it.
        packages: optional packages that the format needs. The package extra `train` installs them.
        local_only: whether shards can only be read from a local disk.
    """

    name: str
    title: str
    extension: str
    write: Callable[[Folder, str, Sequence[TokenizedRecording], Columns], None]
    count_blocks: Callable[[ShardFile], int]
    read_block: Callable[[ShardFile, int], Iterator[TokenSequence]]
    datasets_loader: str | None = None
    packages: tuple[str, ...] = ()
    local_only: bool = False

    def shard_name(self, number: int) -> str:
        """Path of a shard's file below the folder of the data set."""
        return f"data/{shard_stem(number)}.{self.extension}"

    def require_packages(self, activity: str) -> None:
        """Check that the packages of the format are installed.

        Args:
            activity: "reading" or "writing", for the message.

        Raises:
            ConfigError: a package is missing.
        """
        require(f"{activity} {self.title} shards", "train", *self.packages)


def shard_stem(number: int) -> str:
    """File name of a shard without its extension."""
    return f"tokens-{number:05d}"


def token_dtype(codebook_size: int) -> np.dtype:
    """The smallest unsigned type, of 16 or 32 bits, that holds all tokens of a codebook."""
    return np.dtype("<u2" if codebook_size <= 2**16 else "<u4")


def manifest_columns(recordings: Sequence[Recording]) -> Columns:
    """Names and types of the manifest columns of all recordings. All shards therefore have the same schema.

    A column becomes text if its values have several types or are objects. These values are stored as JSON.
    """
    names = dict.fromkeys(name for recording in recordings for name in recording.columns)
    columns = {}
    for name in names:
        values = [recording.columns.get(name) for recording in recordings]
        try:
            kind = pa.array(values).type  # `pa.infer_type` returns types that arrays cannot hold
        except (pa.ArrowException, OverflowError):
            kind = pa.null()
        element = kind.value_type if pa.types.is_list(kind) else kind
        columns[name] = pa.string() if pa.types.is_null(kind) or pa.types.is_nested(element) else kind
    return columns


def column_name(column: str) -> str:
    """Name of a manifest column in the data set. A prefix is added if the data set has a column of the same name."""
    return f"manifest_{column}" if column in OWN_COLUMNS else column


def plain_row(row: TokenizedRecording) -> dict[str, Any]:
    """All columns of a recording except its tokens, as JSON values."""
    own = {"id": row.recording.id, "duration": row.duration, "source": row.recording.source}
    return own | {column_name(name): value for name, value in row.recording.columns.items()}


def id_path(id_: str) -> str:
    """A relative path made from an id. Different ids give different paths, and all are valid in file systems."""
    return "/".join(map(_path_part, id_.split("/")))


def _path_part(part: str) -> str:
    name = "".join(letter if letter.isalnum() else quote(letter, safe=" ,+=@~()[]'&!") for letter in part)
    if len(name.encode()) > NAME_BYTES:
        digest = hashlib.sha256(part.encode()).hexdigest()[:16]
        name = f"{name.encode()[: NAME_BYTES - 17].decode(errors='ignore')}~{digest}"
    if set(name) <= {"."}:  # avoid an empty name and the relative folders . and ..
        return name.replace(".", "%2E") or "%2F"
    return name


@contextmanager
def named_errors(path: str, format: str) -> Iterator[None]:
    """Convert the errors of a reader to a TokenError that names the file.

    Raises:
        TokenError: the block raised one of `UNREADABLE`.
    """
    try:
        yield
    except TokenError:
        raise
    except UNREADABLE as error:
        raise TokenError(
            f"{path} is missing, truncated, or not {format} of tokens: {error}; copy or make the data set again"
        ) from error


# --- formats with one JSON object per line -------------------------------------------------------------------------


def write_json_lines(folder: Folder, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write a shard with one JSON object per line."""
    with folder.written(name) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def count_byte_blocks(shard: ShardFile, block_bytes: int) -> int:
    """Number of blocks of about `block_bytes` bytes in a shard."""
    return -(-shard.size() // block_bytes)


def read_json_lines(shard: ShardFile, block: int, block_bytes: int) -> Iterator[dict[str, Any]]:
    """The objects of all lines that begin in the bytes of a block."""
    with shard.open() as file:
        for line in lines_within(file, block * block_bytes, (block + 1) * block_bytes):
            yield json.loads(line)


def lines_within(file: Any, first: int, last: int) -> Iterator[bytes]:
    """The lines of a file that begin at its bytes `first` … `last` − 1."""
    place = max(first - 1, 0)
    file.seek(place)
    if first:
        place += len(file.readline())
    while place < last and (line := file.readline()):
        place += len(line)
        yield line
