"""Load and save checkpoints in the official layout, which the PyTorch original also loads."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from focalcodec_jax.config import PRESETS, CodecConfig, DType
from focalcodec_jax.convert import mapping, official
from focalcodec_jax.convert.files import find_weights, read_tensors
from focalcodec_jax.errors import CheckpointError
from focalcodec_jax.files import ASSETS, written_whole
from focalcodec_jax.nn.codec import FocalCodec, initialize
from focalcodec_jax.version import __version__

Variables = Mapping[str, Any]
HUB_OWNER = "lucadellalib"
DEMO = "demo"
"""Name of the small demonstration codec in this package."""


def load_pretrained(
    name_or_folder: str | Path, *, revision: str | None = None, dtype: DType | None = None
) -> tuple[FocalCodec, Variables]:
    """Load a codec.

    Args:
        name_or_folder: one of
            - a folder with `config.json` and `model.safetensors`, in the official layout v0.0.2 or v0.0.1;
            - a repository on the Hugging Face Hub, such as `lucadellalib/focalcodec_50hz`;
            - the short name of a published model, such as `focalcodec_50hz`;
            - `demo`, the small demonstration codec in this package.
        revision: branch, tag or commit of the hub repository.
        dtype: compute dtype, float32 by default. Parameters are always float32.

    Returns:
        The Flax module and its variables.

    Raises:
        CheckpointError: The checkpoint is missing, unreachable or truncated, or its tensors do not match its
            configuration.
        ConfigError: The configuration is not that of a FocalCodec.
    """
    folder = checkpoint_folder(name_or_folder, revision=revision)
    config = CodecConfig.from_json(folder / "config.json", dtype=dtype or "float32")
    path = find_weights(folder)
    try:
        tensors, _ = official.to_v002(read_tensors(path))
        params = mapping.translate(mapping.OFFICIAL, tensors, parameter_shapes(config))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in params.items()}
    return FocalCodec(config), {"params": unflatten_dict(arrays, sep="/")}


def save_pretrained(
    folder: str | Path,
    model: FocalCodec,
    variables: Variables,
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: str = "float32",
) -> None:
    """Write a codec in the official v0.0.2 layout: `config.json` and `model.safetensors`.

    Weights saved in float32 load back exactly.

    Args:
        folder: folder to write to. It is created if necessary.
        model, variables: the Flax module and its variables.
        metadata: provenance, stored in the safetensors header together with the version of this package.
        dtype: float32, float16 or bfloat16. The last two halve the size of the file and round the weights.

    Raises:
        CheckpointError: The variables do not match the model, or the dtype is not supported.
        OSError: The folder cannot be written. No partial file is left.
    """
    folder = Path(folder)
    params = {name: np.asarray(array) for name, array in flatten_dict(variables["params"], sep="/").items()}
    expected = parameter_shapes(model.config)
    shapes = {name: array.shape for name, array in params.items()}
    wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if wrong:
        raise CheckpointError(f"the variables do not match the model; missing, unknown or wrongly shaped: {wrong}")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise CheckpointError(f"weights are stored as float32, float16 or bfloat16, not {dtype!r}", parameter="dtype")
    tensors = mapping.translate(mapping.TO_OFFICIAL, params)
    tensors = {name: np.ascontiguousarray(array, jnp.dtype(dtype)) for name, array in tensors.items()}
    header = {"format": "pt", "producer": f"focalcodec_jax {__version__}", **(metadata or {})}
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "model.safetensors") as weights, written_whole(folder / "config.json") as config:
        # save_file of safetensors creates files that only their owner can read.
        weights.write_bytes(save(tensors, header))
        config.write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")


@lru_cache
def parameter_shapes(config: CodecConfig) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter. No parameter is allocated."""
    model = FocalCodec(config)
    params = jax.eval_shape(lambda key: initialize(model, key), jax.random.key(0))["params"]
    shapes: dict[str, Any] = flatten_dict(jax.tree.map(lambda leaf: leaf.shape, params), sep="/")
    return shapes


def structure(name_or_folder: str | Path, *, dtype: DType = "float32") -> CodecConfig:
    """Configuration of a checkpoint. The configurations of the published models are built in and need no network.

    Args:
        name_or_folder: as for `load_pretrained`.
        dtype: compute dtype of the configuration.

    Raises:
        CheckpointError, ConfigError: As for `load_pretrained`.
    """
    short = str(name_or_folder).removeprefix(f"{HUB_OWNER}/")
    if short in PRESETS and not Path(name_or_folder).is_dir():
        return replace(PRESETS[short], dtype=dtype)
    return CodecConfig.from_json(checkpoint_folder(name_or_folder) / "config.json", dtype=dtype)


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weight file of a checkpoint folder, as hexadecimal digits."""
    with open(find_weights(folder), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_folder(name_or_folder: str | Path, *, revision: str | None = None) -> Path:
    """Local folder of a checkpoint, which is downloaded from the Hugging Face Hub if necessary.

    Raises:
        CheckpointError: The folder does not exist or is incomplete, or the download fails.
    """
    name, folder = str(name_or_folder), Path(name_or_folder)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} contains no config.json; a checkpoint folder has one next to its weights")
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that contains config.json and the weights")
    if name == DEMO:
        return ASSETS / DEMO
    if name in PRESETS:
        name = f"{HUB_OWNER}/{name}"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(
            f"no checkpoint {name!r}: neither a local folder nor a hub name such as {HUB_OWNER}/focalcodec_50hz"
        )
    return fetch(name, ("config.json", "model.safetensors"), revision=revision)


def fetch(repository: str, names: tuple[str, ...], *, revision: str | None = None) -> Path:
    """Download files of a hub repository, or find them in the cache. With `HF_HUB_OFFLINE=1`, only the cache is used.

    Returns:
        The folder of the files.

    Raises:
        CheckpointError: The repository, the revision or a file does not exist, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] - the error of the client's HTTP library
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        paths = [Path(hf_hub_download(repository, name, revision=revision)) for name in names]
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository} is not in the cache and the hub cannot be reached; try again online"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the hub has no repository {repository!r}, or the repository is private and needs a login"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{repository} lacks one of {', '.join(names)}") from error
    except (HTTPError, HFValidationError) as error:
        raise CheckpointError(f"{repository} cannot be downloaded: {str(error).splitlines()[0]}") from error
    return paths[0].parent
