"""Reading weight files as numpy arrays."""

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from focalcodec_jax.errors import CheckpointError

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin", "model.pt")
"""What a checkpoint folder's weights may be called, in the order they are looked for."""


def find_weights(folder: Path) -> Path:
    """The weight file of a checkpoint folder.

    Raises:
        CheckpointError: there is none.
    """
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} holds no weights; a checkpoint folder has one of {', '.join(WEIGHT_NAMES)}")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a `.safetensors` file, or of a pickled one (`.bin`, `.pt`) that holds nothing else.

    Raises:
        CheckpointError: truncated, or not such a file.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is truncated or not safetensors ({error}); fetch it again") from error
    content = read_pickled(path)
    return to_numpy(content, path)


def read_pickled(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, read with `weights_only=True`, so that nothing in the file is run.

    Raises:
        CheckpointError: torch is not installed, or the file is truncated or holds more than weights.
    """
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(f"{path} is a pickled file, which needs torch: pip install torch") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, struct.error, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or holds more than weights ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def to_numpy(tensors: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    """Torch tensors as arrays.

    Raises:
        CheckpointError: an entry is not a tensor.
    """
    wrong = [name for name, tensor in tensors.items() if not hasattr(tensor, "numpy")]
    if wrong:
        raise CheckpointError(f"{path} holds entries that are not tensors: {', '.join(map(str, wrong))}")
    return {
        name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in tensors.items()
    }
