"""Writing files so that they appear whole or not at all."""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from focalcodec_jax.errors import ConfigError


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
