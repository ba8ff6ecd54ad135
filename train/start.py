"""The codec that a run begins with."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from focalcodec_jax.codec import FocalCodec, initialize
from focalcodec_jax.config import CodecConfig
from focalcodec_jax.pretrained import checkpoint_folder, load_pretrained, save_pretrained
from focalcodec_jax.train import sharding
from focalcodec_jax.train.config import ModelConfig, TrainConfig

CODEC = "codec"
"""Folder in a run that holds the codec as training began, so that a run needs nothing outside it to go on."""
FIRST_CONV = "encoder/feature_extractor/layers_0/conv/kernel"


def starting_codec(config: TrainConfig, run_dir: Path, mesh: Mesh) -> tuple[FocalCodec, Any]:
    """The model and its parameters on the mesh; on a run's first start also written into its folder.

    Raises:
        CheckpointError: the checkpoint cannot be found or read.
        ConfigError: its configuration, or the one given, is not a codec's.
    """
    kept = run_dir / CODEC
    if (kept / "config.json").is_file():
        return _load(kept, config.model, mesh)
    if config.model.checkpoint is not None:
        model, params = _load(checkpoint_folder(config.model.checkpoint), config.model, mesh)
    else:
        model = FocalCodec(codec_config(config.model))
        params = fresh(config, model, mesh)
    host = jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), params)
    if jax.process_index() == 0:
        save_pretrained(kept, model, {"params": host})
    return model, params


def codec_config(config: ModelConfig) -> CodecConfig:
    """Structure of the codec to train.

    Raises:
        CheckpointError, ConfigError: as above.
    """
    if config.checkpoint is not None:
        return CodecConfig.from_json(checkpoint_folder(config.checkpoint) / "config.json", dtype=config.dtype)
    preset = None if config.preset is None else CodecConfig.preset(config.preset).to_dict()
    return CodecConfig.from_dict(preset or config.codec or {}, dtype=config.dtype)


def fresh(config: TrainConfig, model: FocalCodec, mesh: Mesh) -> Any:
    """Random parameters, born where they belong."""

    def init(key: jax.Array) -> Any:
        params = flatten_dict(initialize(model, key)["params"], sep="/")
        params[FIRST_CONV] *= config.model.input_gain
        return unflatten_dict(params, sep="/")

    key = jax.random.key(config.seed)
    where = sharding.shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=where)(key)


def _load(folder: Path, config: ModelConfig, mesh: Mesh) -> tuple[FocalCodec, Any]:
    model, variables = load_pretrained(folder, dtype=config.dtype)
    params = jax.device_get(variables["params"])
    return model, sharding.put(params, sharding.shardings(params, mesh))
