"""Archives for tests."""

import io
import tarfile
from pathlib import Path


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar of members with the given content."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path
