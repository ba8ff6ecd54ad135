"""Import PyTorch checkpoints of FocalCodec and WavLM as a codec."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from focalcodec_jax.config import CodecConfig
from focalcodec_jax.errors import CheckpointError
from focalcodec_jax.nn.codec import FocalCodec, initialize
from focalcodec_jax.pretrained import Variables, fetch, parameter_shapes

from . import mapping, official, wavlm
from .files import WEIGHT_NAMES, find_weights, read_pickled, read_tensors

DEFAULT_PRESET = "focalcodec_50hz"


@dataclass(frozen=True)
class ImportedCheckpoint:
    """A codec made from a checkpoint.

    Attributes:
        model, variables: the Flax module and its variables.
        layout: name of the layout of the checkpoint.
        dropped: names of unused tensors, by the reason.
        fresh: randomly initialized parts, which the checkpoint does not contain.
    """

    model: FocalCodec
    variables: Variables
    layout: str
    dropped: Mapping[str, list[str]]
    fresh: tuple[str, ...] = ()


def import_checkpoint(
    source: str | Path, *, preset: str | None = None, layers: int = 6, seed: int = 0
) -> ImportedCheckpoint:
    """Import a PyTorch checkpoint.

    Supported layouts are FocalCodec v0.0.1 and v0.0.2, and WavLM-large as published by transformers and by Microsoft.

    Args:
        source: a folder, a weight file, or a hub name.
        preset: published model whose structure is used. For a WavLM, it describes the other parts, and the default is
            `focalcodec_50hz`. It is required for a FocalCodec weight file without `config.json`.
        layers: number of transformer layers of a WavLM to keep.
        seed: random seed for initializing the parts that a WavLM does not have.

    Raises:
        CheckpointError: The checkpoint is missing, has an unknown layout, or its tensors do not match the model.
        ConfigError: The configuration or the preset is invalid.
    """
    path = locate(str(source))
    if wavlm_checkpoint := _read_wavlm(path):
        return _around_wavlm(wavlm_checkpoint, preset, layers, seed)
    config_path = path.parent / "config.json"
    if config_path.is_file():
        if preset is not None:
            raise CheckpointError(f"{config_path} describes the codec already; give no preset", parameter="preset")
        config = CodecConfig.from_json(config_path)
    elif preset is not None:
        config = CodecConfig.preset(preset)
    else:
        raise CheckpointError(f"{path} has no config.json next to it; give a preset", parameter="preset")
    tensors = read_tensors(path)
    renamed, dropped = official.to_v002(tensors)
    params = mapping.translate(mapping.OFFICIAL, renamed, parameter_shapes(config))
    return ImportedCheckpoint(FocalCodec(config), _variables(params), f"FocalCodec {official.layout(tensors)}", dropped)


def locate(source: str) -> Path:
    """Find the weight file of a folder, a file name or a hub name.

    Raises:
        CheckpointError: There is no weight file.
    """
    path = Path(source)
    if path.is_dir():
        return find_weights(path)
    if path.is_file():
        return path
    if source.count("/") != 1 or path.suffix in (".pt", ".bin", ".safetensors"):
        raise CheckpointError(f"{source} does not exist, and is not a hub name such as microsoft/wavlm-large")
    fetch(source, ("config.json",))
    missing: CheckpointError | None = None
    for name in WEIGHT_NAMES:
        try:
            return fetch(source, (name,)) / name
        except CheckpointError as error:
            missing = error
    raise CheckpointError(f"{source} has none of {', '.join(WEIGHT_NAMES)}") from missing


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _read_wavlm(path: Path) -> wavlm.WavLMCheckpoint | None:
    """Read a WavLM checkpoint. Returns None if the weight file is of another model."""
    if path.suffix in (".pt", ".bin") and path.name not in WEIGHT_NAMES:
        content = read_pickled(path)
        if {"cfg", "model"} <= content.keys():
            return wavlm.from_microsoft(content, path)
    config_path = path.parent / "config.json"
    if config_path.is_file() and "model_type" in (config := _json(config_path)):
        return wavlm.from_hugging_face(config, read_tensors(path), config_path)
    return None


def _around_wavlm(checkpoint: wavlm.WavLMCheckpoint, preset: str | None, layers: int, seed: int) -> ImportedCheckpoint:
    """Build a codec around a WavLM. The preset describes the other parts, except for the feature dimension."""
    base, dim = CodecConfig.preset(preset or DEFAULT_PRESET), checkpoint.sizes["dim"]
    config = replace(
        base,
        encoder=replace(base.encoder, num_layers=layers, **checkpoint.sizes),
        compressor=replace(base.compressor, input_dim=dim),
        decompressor=replace(base.decompressor, output_dim=dim),
        decoder=replace(base.decoder, input_dim=dim),
    )
    renamed, dropped = wavlm.encoder_tensors(checkpoint, layers)
    shapes = {name: shape for name, shape in parameter_shapes(config).items() if name.startswith("encoder/")}
    encoder = mapping.translate(mapping.OFFICIAL, renamed, shapes)
    model = FocalCodec(config)
    fresh = flatten_dict(initialize(model, jax.random.key(seed))["params"], sep="/")
    parts = ("compressor", "decompressor", "decoder")
    return ImportedCheckpoint(model, _variables(fresh | encoder), checkpoint.layout, dropped, parts)


def _variables(params: Mapping[str, Any]) -> Variables:
    arrays = {name: np.asarray(array, np.float32) for name, array in params.items()}
    return {"params": unflatten_dict(arrays, sep="/")}
