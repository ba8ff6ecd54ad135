"""Read weight files as NumPy arrays."""

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from focalcodec_jax.errors import CheckpointError

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin", "model.pt")
"""Names of weight files in a checkpoint folder, in the order of preference."""


def find_weights(folder: Path) -> Path:
    """Find the weight file of a checkpoint folder.

    Raises:
        CheckpointError: The folder has no weight file.
    """
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} contains no weights; a checkpoint folder has one of {', '.join(WEIGHT_NAMES)}")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a `.safetensors` file, or of a pickled file (`.bin`, `.pt`) that contains only tensors.

    Raises:
        CheckpointError: The file is truncated, or of another kind.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is truncated or not safetensors ({error}); download it again") from error
    return to_numpy(read_pickled(path), path)


def read_pickled(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save` with `weights_only=True`. No code in the file is run.

    Raises:
        CheckpointError: torch is not installed, or the file is truncated or contains more than weights.
    """
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(f"{path} is a pickled file, and reading it needs torch: pip install torch") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, struct.error, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or contains more than weights ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} contains a {type(content).__name__}, not a dictionary of tensors")
    return content


def to_numpy(tensors: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    """Convert torch tensors to arrays. Floating-point tensors become float32.

    Args:
        tensors: tensors by name.
        path: file of the tensors, for error messages.

    Raises:
        CheckpointError: An entry is not a tensor.
    """
    wrong = [name for name, tensor in tensors.items() if not hasattr(tensor, "numpy")]
    if wrong:
        raise CheckpointError(f"{path} contains entries that are not tensors: {', '.join(map(str, wrong))}")
    return {
        name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in tensors.items()
    }
