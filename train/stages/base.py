"""The definition of a training stage, and functions that several stages use."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from focalcodec_jax.config import CodecConfig
from focalcodec_jax.errors import ConfigError
from focalcodec_jax.nn import bsq, lengths as count
from focalcodec_jax.nn.codec import FocalCodec
from focalcodec_jax.nn.layers import frame_mask, zero_padding

from .. import losses
from ..sections import PARTS, DataConfig, LossConfig, ModelConfig, Part

Params = Mapping[str, Any]
Leaf = Any
"""An array, or its shape in functions that compute nothing."""
MAX_ENTROPY_BITS = 20
"""Maximum number of bits per token for the entropy loss."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Recordings at 16 kHz, padded to one length. Micro-batches have an additional first axis."""

    sig: Leaf
    """(batch, samples), float32."""
    lengths: Leaf
    """(batch,) number of real samples. It is 0 for an unreadable recording and for a row without a recording."""
    crop: Leaf
    """(batch,) position of the crop of encoded features, as a share of the possible positions in [0, 1)."""
    bad: Leaf
    """(batch,) 1 for an unreadable recording."""

    @property
    def rows(self) -> Float[Array, " batch"]:
        """Weight of each row: 1 for a recording, 0 for an empty row."""
        return (self.lengths > 0).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outcome:
    """Result of a stage's forward function."""

    terms: dict[str, Leaf]
    """Unweighted scalar losses, by the name of their weight in `LossConfig`."""
    weight: Leaf
    """Weight of the batch in means. It is the number of real frames, or of real samples if only audio is compared."""
    real: Leaf | None = None
    """(batch, samples) target signal, zero past each item's end. None if the stage compares no audio."""
    fake: Leaf | None = None
    """(batch, samples) decoded signal, zero past each item's end."""
    notes: dict[str, Leaf] = field(default_factory=dict)
    """Additional scalars to log."""
    counts: Leaf | None = None
    """(codes,) number of uses of each code."""


@dataclass(frozen=True)
class StageContext:
    """The codec and settings that a forward function uses."""

    model: FocalCodec
    loss: LossConfig
    crop_frames: int | None = None
    """Number of feature frames to crop from each encoded recording. None in validation, which decodes whole recordings.
    """
    remat: bool = False
    """Recompute the activations of each part in the backward pass."""
    teacher: FocalCodec | None = None
    """Codec whose encoder computes the targets. Its parameters are in `params["teacher"]`."""

    def apply(self, params: Params, method: str, x: Array, lengths: Array | None = None) -> Array:
        """Call a method of the codec, such as `sig_to_feats`."""
        apply = partial(self.model.apply, method=method)
        if self.remat:
            apply = jax.checkpoint(apply)
        out: Any = apply({"params": params}, x, *(() if lengths is None else (lengths,)))
        return out

    def apply_teacher(self, params: Params, method: str, x: Array, lengths: Array) -> Any:
        """Call a method of the teacher, without a gradient."""
        assert self.teacher is not None
        return jax.lax.stop_gradient(self.teacher.apply({"params": params["teacher"]}, x, lengths, method=method))


Forward = Callable[[StageContext, Params, Batch], Outcome]
CodecCheck = Callable[[CodecConfig], str | None]
"""Returns a description of the problem with a codec, or None."""


@dataclass(frozen=True)
class Stage:
    """A training stage: the parts that it trains, its requirements, and its losses."""

    name: str
    """Value of the key `stage` in a configuration."""
    forward: Forward
    """Computes losses from a batch and the parameters of all parts."""
    passes: tuple[Part, ...]
    """Parts that audio passes through in training. `codec_from_runs` compares them between runs."""
    trains: tuple[Part, ...] | None
    """Parts that are trained. None means that the configuration selects them in `trainable`."""
    frozen: tuple[str, ...] = ()
    """Regular expressions for paths that stay fixed within trained parts, such as `encoder/feature_extractor`."""
    crops: bool = False
    """Whether batches are random crops of `data.crop_seconds`. Otherwise they are whole recordings.

    A stage that crops encoded features by `crop_frames` takes whole recordings.
    """
    output_rates_hz: tuple[int, ...] | None = None
    """Output sample rates that the stage accepts. None if the stage does not decode."""
    discriminators: bool = False
    """Whether discriminators are trained if their losses have a weight."""
    needs_checkpoint: bool = False
    """Whether training must start from `model.checkpoint`. Otherwise it can also start from random weights."""
    teacher: str | None = None
    """Hub name or folder of the codec whose frozen encoder computes the targets. None means no teacher."""
    codec_checks: tuple[CodecCheck, ...] = ()
    """Further conditions on the codec."""

    def __post_init__(self) -> None:
        unknown = {*self.passes, *(self.trains or ())} - {*PARTS}
        if unknown:
            raise ConfigError(f"the {self.name} stage names unknown parts: {', '.join(sorted(unknown))}")
        if unused := {*(self.trains or ())} - {*self.passes}:
            raise ConfigError(f"the {self.name} stage trains parts that no audio passes: {', '.join(sorted(unused))}")

    def check_outcome(self, outcome: Outcome, adversarial: bool) -> None:
        """Check what `forward` returned, while the step is traced.

        Raises:
            ConfigError: a loss has no weight in `LossConfig`, or the audio for the discriminators is missing.
        """
        weights = {weight.name for weight in fields(LossConfig)}
        if unknown := outcome.terms.keys() - weights:
            raise ConfigError(
                f"the {self.name} stage returns the loss {min(unknown)!r}; LossConfig has no weight of this name"
            )
        if adversarial and (outcome.real is None or outcome.fake is None):
            raise ConfigError(f"the {self.name} stage has discriminators, but returns no real and fake audio")

    def config_problems(self, trainable: Sequence[Part], model: ModelConfig, data: DataConfig) -> list[str]:
        """Descriptions of everything in a configuration that contradicts this stage."""
        problems = []
        if self.trains is None and not trainable:
            problems.append(f"the {self.name} stage needs the parts to train in trainable")
        if self.trains is not None and tuple(trainable) not in ((), self.trains):
            problems.append(f"the {self.name} stage trains {', '.join(self.trains)}; remove trainable")
        if self.needs_checkpoint and model.checkpoint is None:
            problems.append(f"the {self.name} stage needs model.checkpoint")
        if self.crops and data.crop_seconds is None:
            problems.append(f"the {self.name} stage needs data.crop_seconds")
        if not self.crops and data.crop_seconds is not None:
            problems.append(f"the {self.name} stage takes whole recordings; remove data.crop_seconds")
        return problems

    def check_codec(self, codec: CodecConfig) -> None:
        """Check that this stage can train a codec.

        Raises:
            ConfigError: the stage cannot train the codec. The message names all reasons.
        """
        problems = [problem for check in self.codec_checks if (problem := check(codec)) is not None]
        rates = self.output_rates_hz
        if rates is not None and codec.sample_rate_out_hz not in rates:
            accepted = " or ".join(f"{rate} Hz" for rate in rates)
            problems.append(
                f"the {self.name} stage compares audio at {accepted}; this codec decodes to {codec.sample_rate_out_hz} "
                "Hz"
            )
        if problems:
            raise ConfigError("; ".join(problems))

    def split_params(self, params: Params, parts: Sequence[Part]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split the parameters of a codec into two trees: the trained parameters, and the fixed ones.

        Args:
            params: parameters of the codec.
            parts: the trained parts. Paths that match `frozen` stay fixed within them.
        """
        flat = flatten_dict(params, sep="/", keep_empty_nodes=True)
        trained = {
            path
            for path in flat
            if path.split("/")[0] in parts and not any(re.match(pattern, path) for pattern in self.frozen)
        }
        return (
            unflatten_dict({path: leaf for path, leaf in flat.items() if path in trained}, sep="/"),
            unflatten_dict({path: leaf for path, leaf in flat.items() if path not in trained}, sep="/"),
        )


def merge_params(*trees: Params) -> dict[str, Any]:
    """Merge several trees of parameters. Later trees take precedence."""
    flat = {}
    for tree in trees:
        flat |= flatten_dict(tree, keep_empty_nodes=True)
    return unflatten_dict(flat)


def codebook_is_small_enough(codec: CodecConfig) -> str | None:
    """Codec check of stages with the entropy loss, which needs memory for one number per code."""
    bits = codec.quantizer.code_dim
    if bits <= MAX_ENTROPY_BITS:
        return None
    return f"the entropy loss keeps one number per code; 2^{bits} codes are too many (2^{MAX_ENTROPY_BITS})"


# --- pieces of forward functions -------------------------------------------------------------------------------


def through_codes(
    context: StageContext, params: Params, batch: Batch, feats: Array, frames: Array
) -> tuple[Outcome, Array]:
    """Compute codes from features, rebuild the features, and compute the losses.

    Args:
        context, params, batch: arguments of the forward function.
        feats: (batch, frames, dim).
        frames: (batch,) number of real frames.

    Returns:
        The losses, and the rebuilt features in the shape of `feats`.
    """
    codec = context.model.config
    tokens = count.frames_to_tokens(codec, frames)
    lats = context.apply(params, "feats_to_lats", feats, frames)
    codes, toks = bsq.quantize(lats)
    qfeats = context.apply(params, "codes_to_qfeats", codes, tokens)[:, : feats.shape[1]]

    rows = batch.lengths > 0
    frames, tokens = frames * rows, tokens * rows
    per_frame, codebook = bsq.entropies(lats, tokens, inv_temperature=context.loss.inv_temperature)
    terms = {"entropy": per_frame - context.loss.diversity * codebook}
    if context.loss.feature:
        terms["feature"] = losses.feature_loss(qfeats, jax.lax.stop_gradient(feats), frames)
    real = frame_mask(tokens, toks.shape[1])
    counts = jnp.zeros(codec.quantizer.codebook_size, jnp.int32).at[toks].add(real.astype(jnp.int32))
    notes = {"entropy_per_frame": per_frame, "entropy_of_codebook": codebook}
    return Outcome(terms, frames.sum().astype(jnp.float32), notes=notes, counts=counts), qfeats


def compare_audio(context: StageContext, batch: Batch, real: Array, fake: Array, samples: Array) -> Outcome:
    """Log-mel loss between two signals at the output rate of the codec.

    Args:
        context, batch: arguments of the forward function.
        real, fake: (batch, samples) signals.
        samples: (batch,) number of real samples.
    """
    samples, rate_hz = samples * (batch.lengths > 0), context.model.config.sample_rate_out_hz
    real, fake = (zero_padding(sig[..., None], samples)[..., 0] for sig in (real, fake))
    terms = {}
    if context.loss.mel:
        terms["mel"] = losses.mel_loss(fake, real, samples, context.loss.mels, rate_hz)
    return Outcome(terms, samples.sum().astype(jnp.float32), real, fake)


def joined(features: Outcome, audio: Outcome) -> Outcome:
    """Combine losses on features and on audio in one outcome, with the weight of the features."""
    return replace(features, terms=features.terms | audio.terms, real=audio.real, fake=audio.fake)
