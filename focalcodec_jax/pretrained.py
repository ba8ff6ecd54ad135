"""Checkpoints in and out: a hub name or a folder ↔ (model, variables), in the official layout.

One weight format: what `save_pretrained` writes, the PyTorch original loads as well.
"""

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
"""Name of the small codec that ships in the package."""


def load_pretrained(
    name_or_folder: str | Path, *, revision: str | None = None, dtype: DType | None = None
) -> tuple[FocalCodec, Variables]:
    """Load a codec.

    Args:
        name_or_folder: a folder with `config.json` and `model.safetensors` (official layout v0.0.2 or v0.0.1), a
            repository on the Hugging Face Hub such as `lucadellalib/focalcodec_50hz`, the short name of a published
            model such as `focalcodec_50hz`, or `demo`, the small one in this package.
        revision: branch, tag or commit of the hub repository.
        dtype: compute dtype, float32 unless given. Parameters are float32 always.

    Raises:
        CheckpointError: not found, not reachable, truncated, or not the tensors its configuration asks for.
        ConfigError: its configuration is not that of a FocalCodec.
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
    """Write a codec in the official v0.0.2 layout: `config.json` and `model.safetensors`. It loads back bit for bit.

    Args:
        metadata: provenance to keep in the safetensors header, beside this package's version.
        dtype: float32, or float16 or bfloat16 for a file of half the size, whose weights come back rounded.

    Raises:
        CheckpointError: the variables are not those of the model, or there is no such dtype for them.
        OSError: the folder cannot be written; nothing half-written is left.
    """
    folder = Path(folder)
    params = {name: np.asarray(array) for name, array in flatten_dict(variables["params"], sep="/").items()}
    expected = parameter_shapes(model.config)
    shapes = {name: array.shape for name, array in params.items()}
    wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if wrong:
        raise CheckpointError(f"the variables are not those of the model; missing, unknown or misshapen: {wrong}")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise CheckpointError(f"weights are kept as float32, float16 or bfloat16, not {dtype!r}")
    tensors = mapping.translate(mapping.TO_OFFICIAL, params)
    tensors = {name: np.ascontiguousarray(array, jnp.dtype(dtype)) for name, array in tensors.items()}
    header = {"format": "pt", "producer": f"focalcodec_jax {__version__}", **(metadata or {})}
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "model.safetensors") as weights, written_whole(folder / "config.json") as config:
        # safetensors' own writer makes files that only their owner can read
        weights.write_bytes(save(tensors, header))
        config.write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")


@lru_cache
def parameter_shapes(config: CodecConfig) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter, without making any."""
    model = FocalCodec(config)
    params = jax.eval_shape(lambda key: initialize(model, key), jax.random.key(0))["params"]
    shapes: dict[str, Any] = flatten_dict(jax.tree.map(lambda leaf: leaf.shape, params), sep="/")
    return shapes


def structure(name_or_folder: str | Path, *, dtype: DType = "float32") -> CodecConfig:
    """Configuration of a codec; a published one's is known without asking the hub.

    Raises:
        CheckpointError, ConfigError: as `load_pretrained`.
    """
    short = str(name_or_folder).removeprefix(f"{HUB_OWNER}/")
    if short in PRESETS and not Path(name_or_folder).is_dir():
        return replace(PRESETS[short], dtype=dtype)
    return CodecConfig.from_json(checkpoint_folder(name_or_folder) / "config.json", dtype=dtype)


def weights_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's weight file, in hexadecimal digits."""
    with open(find_weights(folder), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_folder(name_or_folder: str | Path, *, revision: str | None = None) -> Path:
    """Where a checkpoint lies on this machine, fetched from the hub if need be.

    Raises:
        CheckpointError: no such folder, or the hub has not got it or cannot be reached.
    """
    name, folder = str(name_or_folder), Path(name_or_folder)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no config.json; a checkpoint folder has it beside its weights")
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that holds config.json and the weights")
    if name == DEMO:
        return ASSETS / DEMO
    if name in PRESETS:
        name = f"{HUB_OWNER}/{name}"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(
            f"no checkpoint {name!r}: not a folder here, and not a hub name such as {HUB_OWNER}/focalcodec_50hz"
        )
    return fetch(name, ("config.json", "model.safetensors"), revision=revision)


def fetch(repository: str, names: tuple[str, ...], *, revision: str | None = None) -> Path:
    """Files of a hub repository, from its cache where they are there (`HF_HUB_OFFLINE=1` asks for nothing else).

    Raises:
        CheckpointError: says whether the repository, the revision, the file or the network is missing.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of whichever HTTP library the client is built on
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
            f"the hub has no repository {repository!r}, or it is private and needs a login"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{repository} lacks one of {', '.join(names)}") from error
    except (HTTPError, HFValidationError) as error:
        raise CheckpointError(f"{repository} cannot be fetched: {str(error).splitlines()[0]}") from error
    return paths[0].parent
