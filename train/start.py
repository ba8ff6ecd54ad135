"""Start of a run: the run folder and the starting codec."""

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
"""Subfolders of the run folder for the starting codec and the teacher. Resuming a run needs no other checkpoint."""
FIRST_CONV = "encoder/feature_extractor/layers_0/conv/kernel"


@dataclass(frozen=True)
class StartingCodec:
    """The codec that training starts from."""

    model: FocalCodec
    params: dict[str, Any]
    """Parameters of the codec on the mesh. If there is a teacher, its encoder is in `params["teacher"]`."""
    teacher: FocalCodec | None = None


def starting_codec(config: TrainConfig, run_dir: Path, mesh: Mesh, *, resumed: bool) -> StartingCodec:
    """Load or create the codec and, if the stage has one, the teacher. A new run also writes them into its folder.

    Args:
        config: configuration of the run.
        run_dir: run folder.
        mesh: mesh for the parameters.
        resumed: whether the run has checkpoints. Its codec is then read from the run folder.

    Raises:
        CheckpointError: the checkpoint cannot be found or read.
        ConfigError: the configuration of the codec or the teacher is invalid.
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
        ConfigError: the given architecture is not that of a codec.
    """
    if config.codec is not None:
        return CodecConfig.from_dict(config.codec, dtype=config.dtype)
    if config.preset is not None:
        return replace(CodecConfig.preset(config.preset), dtype=config.dtype)
    return structure(config.checkpoint or "", dtype=config.dtype)


def random_params(config: TrainConfig, model: FocalCodec, mesh: Mesh) -> dict[str, Any]:
    """Create random parameters with their sharding."""

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
    """Check that all processes plan the same batches.

    Raises:
        ConfigError: the configurations or the recordings of the processes differ.
    """
    if jax.process_count() == 1:
        return
    listed = [as_plain_yaml(config.to_dict()), *([(r.id, r.samples) for r in corpus] for corpus in corpora)]
    digest = np.frombuffer(hashlib.sha256(json.dumps(listed).encode()).digest(), np.uint32)
    if (multihost_utils.process_allgather(digest) != digest).any():
        raise ConfigError(
            "the processes of this run differ in their configuration or in the recordings that they find; start all of "
            "them with the same command, and with folders that all of them can read"
        )


# --- the run folder ---------------------------------------------------------------------------------------------


FIXED = ("stage", "model.checkpoint", "model.preset", "model.codec", "model.input_gain", "trainable")
"""Keys that must not change when a run resumes. Other keys may change, and the log names the changes."""


def changes_since(run_dir: Path, config: TrainConfig) -> dict[str, Any]:
    """Keys of the configuration that changed since the run was last started, each with (before, now).

    Raises:
        ConfigError: a key has changed that must stay the same, because the checkpoints depend on it.
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
            f"{run_dir} contains a run with another configuration ({listed}); give another folder", parameter="run_dir"
        )
    return changes


def keep_config(run_dir: Path, config: TrainConfig) -> None:
    """Write the configuration into the run folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with written_whole(run_dir / CONFIG) as part:
        part.write_text(yaml.safe_dump(as_plain_yaml(config.to_dict()), sort_keys=False, allow_unicode=True))


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys to dotted keys."""
    if isinstance(content, dict) and content:
        return {k: v for key, value in content.items() for k, v in flat(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: as_plain_yaml(content)}


def as_plain_yaml(content: Any) -> Any:
    """Convert tuples to lists, so that the content equals what YAML reads back."""
    if isinstance(content, dict):
        return {key: as_plain_yaml(value) for key, value in content.items()}
    return [as_plain_yaml(item) for item in content] if isinstance(content, list | tuple) else content
