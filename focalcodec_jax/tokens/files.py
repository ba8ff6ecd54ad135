"""Token files: `.npy` for one sequence, and `.npz`, `.json` or a folder of `.npy` files for several."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from focalcodec_jax.errors import TokenError
from focalcodec_jax.files import written_whole

Tokens = Mapping[str, np.ndarray]
"""Token sequences, each (tokens,), by the names of their recordings."""


def write(path: Path, tokens: Tokens) -> None:
    """Write token sequences in the format of the file extension. A path without one is a folder of `.npy` files.

    Raises:
        OSError: a file cannot be written.
    """
    if path.suffix == ".npy":
        (toks,) = tokens.values()
        with written_whole(path) as part:
            np.save(part, toks)
    elif path.suffix == ".npz":
        # np.savez cannot store names that are also its parameters, such as "file"
        with written_whole(path) as part, zipfile.ZipFile(part, "w") as archive:
            for name, toks in tokens.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, toks)
    elif path.suffix == ".json":
        with written_whole(path) as part:
            part.write_text(json.dumps({name: toks.tolist() for name, toks in tokens.items()}) + "\n")
    else:
        path.mkdir(parents=True, exist_ok=True)
        for name, toks in tokens.items():
            with written_whole(path / f"{name}.npy") as part:
                np.save(part, toks)


def check_output(path: Path, count: int) -> None:
    """Check, before any work is done, that an output can hold `count` sequences.

    Raises:
        TokenError: the path has an unknown extension, or ends in `.npy` although there are several sequences.
    """
    known = (".npy", ".npz", ".json")
    if path.suffix and path.suffix not in known and not path.is_dir():
        raise TokenError(f"{path} does not end in {', '.join(known)}; give a file with such an ending, or a folder")
    if path.suffix == ".npy" and count > 1:
        raise TokenError(
            f"{path} is a file for one token sequence, but there are {count}; give a folder, .npz or .json"
        )


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the token sequences of a file or folder, by name.

    Raises:
        TokenError: the file does not exist, is not a token file, or is truncated.
    """
    if path.is_dir():
        found = sorted(path.glob("*.npy"))
        if not found:
            raise TokenError(f"{path} contains no .npy files")
        return {item.name.removesuffix(".npy"): read(item)[item.stem] for item in found}
    if not path.exists():
        raise TokenError(f"{path} does not exist")
    try:
        if path.suffix == ".npy":
            return {path.stem: np.load(path, allow_pickle=False)}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            if not isinstance(content, dict):
                raise ValueError('give an object such as {"a.wav": [17, 4099]}')
            return {name: np.array(toks) for name, toks in content.items()}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TokenError(f"{path} is not a readable token file: {error}") from error
    raise TokenError(f"{path} does not end in .npy, .npz or .json")
