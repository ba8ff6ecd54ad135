"""What a run begins with: its folder, and the codec in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from focalcodec_jax.config import CodecConfig
from focalcodec_jax.errors import CheckpointError, ConfigError
from focalcodec_jax.files import written_whole
from focalcodec_jax.nn.codec import FocalCodec, initialize
from focalcodec_jax.pretrained import checkpoint_folder, load_pretrained, save_pretrained, structure

from . import sharding
from .run_config import ModelConfig, TrainConfig, from_dict

CONFIG = "config.yaml"
CODEC = "starting_codec"
"""Folder in a run that holds the codec as training began, so that a run needs nothing outside it to go on."""
FIRST_CONV = "encoder/feature_extractor/layers_0/conv/kernel"


def starting_codec(config: TrainConfig, run_dir: Path, mesh: Mesh, *, begun: bool) -> tuple[FocalCodec, Any]:
    """The model and its parameters on the mesh: a run's that has `begun` from its folder, or else written there.

    Raises:
        CheckpointError: the checkpoint cannot be found or read.
        ConfigError: its configuration, or the one given, is not a codec's.
    """
    kept = run_dir / CODEC
    if begun:
        if not (kept / "config.json").is_file():
            raise CheckpointError(f"{run_dir} has checkpoints, but no {CODEC} that they began from")
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
    if config.codec is not None:
        return CodecConfig.from_dict(config.codec, dtype=config.dtype)
    if config.preset is not None:
        return replace(CodecConfig.preset(config.preset), dtype=config.dtype)
    return structure(config.checkpoint or "", dtype=config.dtype)


def fresh(config: TrainConfig, model: FocalCodec, mesh: Mesh) -> Any:
    """Random parameters, born where they belong."""

    def init(key: jax.Array) -> Any:
        params: dict[str, Any] = flatten_dict(initialize(model, key)["params"], sep="/")
        params[FIRST_CONV] *= config.model.input_gain
        return unflatten_dict(params, sep="/")

    key = jax.random.key(config.seed)
    where = sharding.shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=where)(key)


def _load(folder: Path, config: ModelConfig, mesh: Mesh) -> tuple[FocalCodec, Any]:
    model, variables = load_pretrained(folder, dtype=config.dtype)
    params = jax.device_get(variables["params"])
    return model, sharding.put(params, sharding.shardings(params, mesh))


# --- the run folder ---------------------------------------------------------------------------------------------


def changes_since(run_dir: Path, config: TrainConfig) -> dict[str, Any]:
    """What has changed since the run began or last went on, by key: (before, now).

    Raises:
        ConfigError: its checkpoints are of another model or stage, or have other discriminators or none.
    """
    kept = yaml.safe_load((run_dir / CONFIG).read_text())
    before, now = flat(kept), flat(config.to_dict())
    changes = {k: (before.get(k), now.get(k)) for k in sorted(before.keys() | now) if before.get(k) != now.get(k)}
    fixed = {k: v for k, v in changes.items() if k.startswith(FIXED)}
    was_adversarial = from_dict(kept).adversarial
    if was_adversarial and config.adversarial:
        fixed |= {k: v for k, v in changes.items() if k.startswith("discriminator")}
    if was_adversarial != config.adversarial:  # their state is in the checkpoints, or is not
        fixed |= {k: v for k, v in changes.items() if k in ("loss.adversarial", "loss.matching")}
    if fixed:
        listed = "; ".join(f"{key} was {was!r}, now {is_!r}" for key, (was, is_) in fixed.items())
        raise ConfigError(f"{run_dir} holds a run of another configuration ({listed}); give another --run-dir")
    return changes


def keep_config(run_dir: Path, config: TrainConfig) -> None:
    """Write the configuration into the run folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with written_whole(run_dir / CONFIG) as part:
        part.write_text(yaml.safe_dump(plain(config.to_dict()), sort_keys=False, allow_unicode=True))


FIXED = ("stage", "model.checkpoint", "model.preset", "model.codec", "model.input_gain", "trainable")
"""Keys on which a checkpoint's meaning rests; others may change when a run goes on, and the log says so."""


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(content, dict) and content:
        return {k: v for key, value in content.items() for k, v in flat(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: plain(content)}


def plain(content: Any) -> Any:
    """Tuples as lists, as YAML reads them back."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    return [plain(item) for item in content] if isinstance(content, list | tuple) else content
