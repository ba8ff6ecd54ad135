"""Import a checkpoint of any known layout as a codec."""

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
from .files import WEIGHT_NAMES, find_weights, read_pickled, read_tensors, to_numpy

DEFAULT_PRESET = "focalcodec_50hz"


@dataclass(frozen=True)
class Imported:
    """A codec and where it came from."""

    model: FocalCodec
    variables: Variables
    layout: str
    dropped: Mapping[str, list[str]]
    """Tensors left out, by the reason why."""
    fresh: tuple[str, ...] = ()
    """Parts that the source does not hold and that were freshly initialised."""


def import_checkpoint(source: str, *, preset: str | None = None, layers: int = 6, seed: int = 0) -> Imported:
    """Read a checkpoint of a known layout.

    Args:
        source: a folder, a weight file, or a hub name. Known are FocalCodec v0.0.1 and v0.0.2, and WavLM-large as
            transformers and as Microsoft keep it.
        preset: for WavLM, the codec to build around it; for a FocalCodec file without a config.json, what it is.
        layers: for WavLM, how many transformer layers to keep.
        seed: for WavLM, of the parts freshly initialised.

    Raises:
        CheckpointError: not found, of no known layout, or lists every tensor that does not fit.
    """
    path = locate(source)
    if path.suffix in (".pt", ".bin") and path.name not in WEIGHT_NAMES:
        content = read_pickled(path)
        if {"cfg", "model"} <= content.keys():
            sizes = wavlm.microsoft_sizes(content["cfg"], path)
            tensors = to_numpy(content["model"], path)
            return _around_wavlm(tensors, wavlm.MICROSOFT, sizes, "WavLM (Microsoft)", (preset, layers, seed))
    config_path = path.parent / "config.json"
    if config_path.is_file() and "model_type" in (described := _json(config_path)):
        sizes = wavlm.hugging_face_sizes(described, config_path)
        tensors = read_tensors(path)
        return _around_wavlm(tensors, wavlm.HUGGING_FACE, sizes, "WavLM (Hugging Face)", (preset, layers, seed))
    if config_path.is_file():
        if preset is not None:
            raise CheckpointError(f"{config_path} says what the codec is; leave --preset out")
        config = CodecConfig.from_json(config_path)
    elif preset is not None:
        config = CodecConfig.preset(preset)
    else:
        raise CheckpointError(f"{path} has no config.json beside it; name the model with --preset")
    tensors = read_tensors(path)
    layout = f"FocalCodec {official.layout(tensors)}"
    renamed, dropped = official.to_v002(tensors)
    params = mapping.translate(mapping.OFFICIAL, renamed, parameter_shapes(config))
    return Imported(FocalCodec(config), _variables(params), layout, dropped)


def locate(source: str) -> Path:
    """The weight file that a folder, a file or a hub name stands for.

    Raises:
        CheckpointError: there is none.
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


def _around_wavlm(
    tensors: mapping.Tensors,
    rules: tuple[mapping.Rule, ...],
    sizes: Mapping[str, Any],
    layout: str,
    options: tuple[str | None, int, int],
) -> Imported:
    """A codec of the preset with this encoder; its other parts take their width from the encoder."""
    preset, layers, seed = options
    base = CodecConfig.preset(preset or DEFAULT_PRESET)
    config = replace(
        base,
        encoder=replace(base.encoder, num_layers=layers, **sizes),
        compressor=replace(base.compressor, input_dim=sizes["dim"]),
        decompressor=replace(base.decompressor, output_dim=sizes["dim"]),
        decoder=replace(base.decoder, input_dim=sizes["dim"]),
    )
    renamed, dropped = wavlm.encoder_tensors(tensors, rules, layers)
    shapes = {name: shape for name, shape in parameter_shapes(config).items() if name.startswith("encoder/")}
    encoder = mapping.translate(mapping.OFFICIAL, renamed, shapes)
    model = FocalCodec(config)
    fresh = flatten_dict(initialize(model, jax.random.key(seed))["params"], sep="/")
    return Imported(model, _variables(fresh | encoder), layout, dropped, ("compressor", "decompressor", "decoder"))


def _variables(params: Mapping[str, Any]) -> Variables:
    arrays = {name: np.asarray(array, np.float32) for name, array in params.items()}
    return {"params": unflatten_dict(arrays, sep="/")}
