"""Files and output folders, on this machine or at a URL, whose files appear whole or not at all."""

import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from focalcodec_jax.errors import ConfigError

ASSETS = Path(__file__).parent / "assets"
"""Folder of the files that ship in this package."""
SAMPLE_RECORDING = ASSETS / "librivox_sense_and_sensibility.flac"
"""Seven seconds of read speech in the public domain; see the README beside it."""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well, and goes when it does not.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full; `path` is then untouched.
    """
    path = Path(path)
    # The suffix stays last: some writers choose the format by it, or add it where it is missing.
    # Not by process number: on a shared disk, processes in containers have the same.
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_lines(path: str | Path, lines: Iterable[Mapping]) -> None:
    """Write one JSON object a line; the file appears whole or not at all.

    Raises:
        OSError: as `written_whole`.
    """
    with written_whole(path) as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def is_url(path: str | Path) -> bool:
    """Whether a path is on an object store or elsewhere beyond this machine's file system."""
    return "://" in str(path)


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL (an fsspec one), and the path in it.

    Raises:
        ConfigError: there is no such kind of URL, or a package for it is missing.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}.get(url.split("://")[0])
        hint = f'pip install "focalcodec-jax[{extra}]"' if extra else str(error)
        raise ConfigError(f"{url} needs a package that is not installed: {hint}") from error
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from error


class Folder:
    """An output folder.

    Args:
        path: a path or a URL such as s3://bucket/tokens; made if it is not there.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: str | Path):
        self.path = str(path).rstrip("/")
        self.remote = is_url(path)
        if not self.remote:
            Path(path).mkdir(parents=True, exist_ok=True)

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder of it."""
        if self.remote:
            files, inside = filesystem(f"{self.path}/{folder}")
            files.invalidate_cache()
            return (
                {name.rsplit("/", 1)[-1] for name in files.ls(inside, detail=False)} if files.exists(inside) else set()
            )
        here = Path(self.path, folder)
        return {path.name for path in here.iterdir()} if here.is_dir() else set()

    def read(self, name: str) -> bytes | None:
        """Content of a file; None where there is none."""
        try:
            if self.remote:
                files, inside = filesystem(f"{self.path}/{name}")
                return files.cat_file(inside)
            return Path(self.path, name).read_bytes()
        except FileNotFoundError:
            return None

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """A path on this machine to write to; when the block ends well, the file is in the folder under its name.

        Raises:
            OSError: it cannot be written, or the disk is full.
        """
        if not self.remote:
            path = Path(self.path, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as part, as_os_error(path):
                yield part
            return
        with tempfile.TemporaryDirectory(prefix="focalcodec-jax-") as folder:
            part = Path(folder, Path(name).name)
            with as_os_error(part):
                yield part
            files, inside = filesystem(f"{self.path}/{name}")
            files.makedirs(inside.rsplit("/", 1)[0], exist_ok=True)  # of no effect where there are no folders
            files.put_file(str(part), inside)

    def write(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all; raises as `written`."""
        with self.written(name) as part:
            part.write_text(text, encoding="utf-8")

    def remove(self, name: str) -> None:
        """Remove a file."""
        if self.remote:
            files, inside = filesystem(f"{self.path}/{name}")
            files.rm_file(inside)
        else:
            Path(self.path, name).unlink()

    def sweep(self, folder: str, stems: set[str]) -> None:
        """Remove what killed processes left half-written of these files."""
        if self.remote:
            return
        for path in Path(self.path, folder).glob(".*.part*"):
            if path.name[1:].split(".", 1)[0] in stems:
                path.unlink(missing_ok=True)


@contextmanager
def as_os_error(path: Path) -> Iterator[None]:
    """ArrayRecord says of a full disk what the system says, but as a RuntimeError; others leave out the file's name."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
