"""Files and output folders, on local disks or at URLs. Writes are atomic: a file appears whole or not at all."""

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
"""Folder of the data files in this package."""
SAMPLE_RECORDING = ASSETS / "librivox_sense_and_sensibility.flac"
"""Seven seconds of read speech in the public domain. The README in its folder names the source."""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename the file to `path` if the block succeeds.

    If the block fails, the temporary file is removed and `path` is unchanged.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    # The suffix comes last, because some writers use it to select the format, or append it if it is missing.
    # The name is random, because processes in different containers can have equal numbers.
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_lines(path: str | Path, lines: Iterable[Mapping]) -> None:
    """Write a file with one JSON object per line.

    Raises:
        OSError: as in `written_whole`.
    """
    with written_whole(path) as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def one_or_more(paths: str | Path | Iterable[str | Path]) -> list[str | Path]:
    """A list of paths, from one path or from several."""
    return [paths] if isinstance(paths, str | Path) else list(paths)


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL, such as `s3://bucket/folder`, instead of a local path."""
    return "://" in str(path)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL or path, and the path in that file system.

    Raises:
        ConfigError: the protocol of the URL is unknown, or needs a package that is not installed.
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
    """An output folder, which is created if it does not exist.

    Args:
        path: a path, or a URL such as s3://bucket/tokens.

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(self, path: str | Path):
        self.path = str(path).rstrip("/")
        self.remote = is_url(path)
        if not self.remote:
            Path(path).mkdir(parents=True, exist_ok=True)

    def names(self, folder: str) -> set[str]:
        """Names of the files in a subfolder. Returns an empty set if the subfolder does not exist."""
        if self.remote:
            files, inside = filesystem(f"{self.path}/{folder}")
            files.invalidate_cache()
            return (
                {name.rsplit("/", 1)[-1] for name in files.ls(inside, detail=False)} if files.exists(inside) else set()
            )
        here = Path(self.path, folder)
        return {path.name for path in here.iterdir()} if here.is_dir() else set()

    def read(self, name: str) -> bytes | None:
        """Content of a file, or None if it does not exist."""
        try:
            if self.remote:
                files, inside = filesystem(f"{self.path}/{name}")
                return files.cat_file(inside)
            return Path(self.path, name).read_bytes()
        except FileNotFoundError:
            return None

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """Yield a local path to write to, and store the file under `name` if the block succeeds.

        Raises:
            OSError: the file cannot be written, or the disk is full.
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
            files.makedirs(inside.rsplit("/", 1)[0], exist_ok=True)  # object stores ignore this
            files.put_file(str(part), inside)

    def write(self, name: str, text: str) -> None:
        """Write a text file.

        Raises:
            OSError: as in `written`.
        """
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
        """Remove temporary files of killed processes from a local folder. URLs have none.

        Args:
            folder: the subfolder to clean.
            stems: names of the files that were being written, without their suffixes.
        """
        if self.remote:
            return
        for path in Path(self.path, folder).glob(".*.part*"):
            if path.name[1:].split(".", 1)[0] in stems:
                path.unlink(missing_ok=True)


@contextmanager
def as_os_error(path: Path) -> Iterator[None]:
    """Convert the errors of writers to an OSError that names the file.

    ArrayRecord reports a full disk as a RuntimeError, and other writers omit the name of the file.
    """
    try:
        yield
    except RuntimeError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
