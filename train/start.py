"""Start of a run: its folder, and the codec in it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from focalcodec_jax.recordings.recording import Recording

from . import sharding
from .run_config import TrainConfig, from_dict
from .sections import ModelConfig

CONFIG = "config.yaml"
CODEC, TEACHER = "starting_codec", "teacher"
"""Folders in a run with the codec that training started from, and with the teacher. Resuming needs no file outside."""
FIRST_CONV = "encoder/feature_extractor/layers_0/conv/kernel"


@dataclass(frozen=True)
class StartingCodec:
    """What training starts from."""

    model: FocalCodec
    params: dict[str, Any]
    """Parameters of the codec on the mesh. With a teacher, its encoder's parameters are in `params["teacher"]`."""
    teacher: FocalCodec | None = None


def starting_codec(config: TrainConfig, run_dir: Path, mesh: Mesh, *, resumed: bool) -> StartingCodec:
    """The codec and, if the stage has one, the teacher. A new run also writes them into its folder.

    Args:
        resumed: whether the run has checkpoints. Its codec is then read from the run folder.

    Raises:
        CheckpointError: the checkpoint cannot be found or read.
        ConfigError: a configuration of a codec is wrong.
    """
    if resumed:
        if not (run_dir / CODEC / "config.json").is_file():
            raise CheckpointError(f"{run_dir} has checkpoints, but not the {CODEC} that they started from")
        model, params = _load_codec(run_dir / CODEC, config.model, mesh)
    elif config.model.checkpoint is not None:
        model, params = _load_codec(checkpoint_folder(config.model.checkpoint), config.model, mesh)
    else:
        model = FocalCodec(codec_config(config.model))
        params = random_params(config, model, mesh)
    if not resumed:
        _keep_codec(run_dir / CODEC, model, params)
    name = config.definition.teacher
    if name is None:
        return StartingCodec(model, params)
    teacher, teacher_params = _load_codec(run_dir / TEACHER if resumed else checkpoint_folder(name), config.model, mesh)
    if not resumed:
        _keep_codec(run_dir / TEACHER, teacher, teacher_params)
    return StartingCodec(model, {**params, "teacher": {"encoder": teacher_params["encoder"]}}, teacher)


def codec_config(config: ModelConfig) -> CodecConfig:
    """Architecture of the codec to train.

    Raises:
        CheckpointError: the checkpoint cannot be found.
        ConfigError: the given architecture is not a codec's.
    """
    if config.codec is not None:
        return CodecConfig.from_dict(config.codec, dtype=config.dtype)
    if config.preset is not None:
        return replace(CodecConfig.preset(config.preset), dtype=config.dtype)
    return structure(config.checkpoint or "", dtype=config.dtype)


def random_params(config: TrainConfig, model: FocalCodec, mesh: Mesh) -> dict[str, Any]:
    """Random parameters, created with their sharding."""

    def init(key: jax.Array) -> Any:
        params: dict[str, Any] = flatten_dict(initialize(model, key)["params"], sep="/")
        params[FIRST_CONV] *= config.model.input_gain
        return unflatten_dict(params, sep="/")

    key = jax.random.key(config.seed)
    where = sharding.shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=where)(key)


def _load_codec(folder: Path, config: ModelConfig, mesh: Mesh) -> tuple[FocalCodec, Any]:
    model, variables = load_pretrained(folder, dtype=config.dtype)
    params = jax.device_get(variables["params"])
    return model, sharding.put(params, sharding.shardings(params, mesh))


def _keep_codec(folder: Path, model: FocalCodec, params: Any) -> None:
    host = jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), params)
    if jax.process_index() == 0:
        save_pretrained(folder, model, {"params": host})


def check_processes_agree(config: TrainConfig, *corpora: Sequence[Recording]) -> None:
    """Refuse to start processes that would plan different batches.

    Raises:
        ConfigError: the configurations or the recordings of the processes differ.
    """
    if jax.process_count() == 1:
        return
    listed = [as_plain_yaml(config.to_dict()), *([(r.id, r.samples) for r in corpus] for corpus in corpora)]
    digest = np.frombuffer(hashlib.sha256(json.dumps(listed).encode()).digest(), np.uint32)
    if (multihost_utils.process_allgather(digest) != digest).any():
        raise ConfigError(
            "the processes of this run differ in their configuration or in the recordings they find; give all the same "
            "command, and folders that all of them see"
        )


# --- the run folder ---------------------------------------------------------------------------------------------


FIXED = ("stage", "model.checkpoint", "model.preset", "model.codec", "model.input_gain", "trainable")
"""Keys that decide what a checkpoint means. Other keys may change when a run resumes, and the log names the changes."""


def changes_since(run_dir: Path, config: TrainConfig) -> dict[str, Any]:
    """Keys that changed since the run was last started, as (before, now).

    Raises:
        ConfigError: the checkpoints are of another model or stage, or differ in their discriminators.
    """
    kept = yaml.safe_load((run_dir / CONFIG).read_text())
    before, now = flat(kept), flat(config.to_dict())
    changes = {k: (before.get(k), now.get(k)) for k in sorted(before.keys() | now) if before.get(k) != now.get(k)}
    fixed = {k: v for k, v in changes.items() if k.startswith(FIXED)}
    was_adversarial = from_dict(kept).adversarial
    if was_adversarial and config.adversarial:
        fixed |= {k: v for k, v in changes.items() if k.startswith("discriminator")}
    if was_adversarial != config.adversarial:  # The checkpoints hold discriminators only in adversarial runs.
        fixed |= {k: v for k, v in changes.items() if k in ("loss.adversarial", "loss.matching")}
    if fixed:
        listed = "; ".join(f"{key} was {was!r}, now {is_!r}" for key, (was, is_) in fixed.items())
        raise ConfigError(
            f"{run_dir} holds a run of another configuration ({listed}); give another folder", parameter="run_dir"
        )
    return changes


def keep_config(run_dir: Path, config: TrainConfig) -> None:
    """Write the configuration into the run folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with written_whole(run_dir / CONFIG) as part:
        part.write_text(yaml.safe_dump(as_plain_yaml(config.to_dict()), sort_keys=False, allow_unicode=True))


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    if isinstance(content, dict) and content:
        return {k: v for key, value in content.items() for k, v in flat(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: as_plain_yaml(content)}


def as_plain_yaml(content: Any) -> Any:
    """Content with tuples as lists, as YAML reads it back."""
    if isinstance(content, dict):
        return {key: as_plain_yaml(value) for key, value in content.items()}
    return [as_plain_yaml(item) for item in content] if isinstance(content, list | tuple) else content
