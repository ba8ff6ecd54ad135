"""Writing files so that they appear whole or not at all."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well, and goes when it does not.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full; `path` is then untouched.
    """
    path = Path(path)
    # The suffix stays last: some writers choose the format by it, or add it where it is missing.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
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
