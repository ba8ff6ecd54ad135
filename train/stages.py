"""What each stage computes from a batch: the losses on codec features, and the signals that are compared as audio."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import ConfigError
from focalcodec_jax.nn import bsq, lengths as count
from focalcodec_jax.nn.codec import FocalCodec
from focalcodec_jax.nn.layers import frame_mask, zero_padding

from . import losses
from .run_config import TrainConfig

Params = Mapping[str, Any]
Run = Callable[..., Array]
Leaf = Any
"""An array; its shape alone where nothing is computed."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Recordings at 16 kHz, padded to one length. Micro-batches have one axis more, before these."""

    sig: Leaf
    """(batch, samples), float32."""
    lengths: Leaf
    """(batch,) real samples; 0 for a recording that could not be read, or for a row that only fills the batch."""
    crop: Leaf
    """(batch,) where to crop encoded features, as a share of where one can: in [0, 1)."""
    bad: Leaf
    """(batch,) 1 for a recording that could not be read."""

    @property
    def rows(self) -> Float[Array, " batch"]:
        """Weight of each row."""
        return (self.lengths > 0).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outcome:
    """What a stage computed."""

    terms: dict[str, Leaf]
    """Losses by name, scalars, not yet weighted."""
    weight: Leaf
    """Real frames, or samples where only audio is compared: the weight of this batch in a longer mean."""
    real: Leaf | None = None
    fake: Leaf | None = None
    """(batch, samples) signals to compare, silent past each item's end."""
    notes: dict[str, Leaf] = field(default_factory=dict)
    """Scalars to log that are no losses."""
    counts: Leaf | None = None
    """(codes,) how often each code was used."""


def check(config: TrainConfig, model: FocalCodec) -> None:
    """Refuse a codec that a stage cannot train.

    Raises:
        ConfigError: says why.
    """
    if config.stage != "quantizer" and model.config.sample_rate_out_hz != SAMPLE_RATE_HZ:
        raise ConfigError(
            f"the {config.stage} stage compares audio at {SAMPLE_RATE_HZ} Hz; this codec decodes to "
            f"{model.config.sample_rate_out_hz} Hz"
        )
    if config.stage != "decoder" and model.config.quantizer.code_dim > 20:
        raise ConfigError(
            f"the entropy loss keeps one number per code; 2^{model.config.quantizer.code_dim} codes are too many (2^20)"
        )


def outcome(config: TrainConfig, model: FocalCodec, params: Params, batch: Batch, *, cropped: bool = True) -> Outcome:
    """Run a stage forward.

    Args:
        params: all parts' parameters.
        cropped: decoder stage: crop the encoded features, as in training; validation hears whole recordings.
    """

    def run(method: str, x: Array, lengths: Array | None = None) -> Array:
        apply = partial(model.apply, method=method)
        if config.model.remat:
            apply = jax.checkpoint(apply)
        out: Any = apply({"params": params}, x, *(() if lengths is None else (lengths,)))
        return out

    if config.stage == "quantizer":
        return quantizer(config, model, run, batch)
    if config.stage == "decoder":
        return decoder(config, model, run, batch, config.crop_frames if cropped else None)
    return whole(config, model, run, batch)


def quantizer(config: TrainConfig, model: FocalCodec, run: Run, batch: Batch) -> Outcome:
    """Features from whole recordings, through the bottleneck, and back to the same features."""
    frames = count.samples_to_frames(model.config, batch.lengths)
    feats = jax.lax.stop_gradient(run("sig_to_feats", batch.sig, batch.lengths))
    return through_codes(config, model, run, batch, feats, frames)[0]


def decoder(config: TrainConfig, model: FocalCodec, run: Run, batch: Batch, crop_frames: int | None) -> Outcome:
    """Continuous features of whole recordings, cropped after encoding, to audio."""
    hop = model.config.decoder.hop_length
    frames = count.samples_to_frames(model.config, batch.lengths)
    feats = jax.lax.stop_gradient(run("sig_to_feats", batch.sig, batch.lengths))
    real = jnp.pad(batch.sig, ((0, 0), (0, hop)))[:, : feats.shape[1] * hop]
    if crop_frames is not None and crop_frames < feats.shape[1]:
        start = (batch.crop * (jnp.maximum(frames - crop_frames, 0) + 1)).astype(jnp.int32)
        feats = jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, crop_frames))(feats, start)
        real = jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, crop_frames * hop))(real, start * hop)
        frames = jnp.minimum(frames, crop_frames)
    return as_audio(config, batch, real, run("feats_to_sig", feats, frames), frames * hop, {})


def whole(config: TrainConfig, model: FocalCodec, run: Run, batch: Batch) -> Outcome:
    """Crops through the whole codec."""
    frames = count.samples_to_frames(model.config, batch.lengths)
    feats = run("sig_to_feats", batch.sig, batch.lengths)
    coded, qfeats = through_codes(config, model, run, batch, feats, frames)
    fake = run("feats_to_sig", qfeats, frames)
    samples = frames * model.config.decoder.hop_length
    real = jnp.pad(batch.sig, ((0, 0), (0, max(0, fake.shape[1] - batch.sig.shape[1]))))[:, : fake.shape[1]]
    heard = as_audio(config, batch, real, fake, jnp.minimum(samples, batch.lengths), coded.terms)
    return Outcome(heard.terms, coded.weight, heard.real, heard.fake, coded.notes, coded.counts)


def through_codes(
    config: TrainConfig, model: FocalCodec, run: Run, batch: Batch, feats: Array, frames: Array
) -> tuple[Outcome, Array]:
    """Features → codes → features rebuilt; the losses on the way, and the rebuilt features."""
    tokens = count.frames_to_tokens(model.config, frames)
    lats = run("feats_to_lats", feats, frames)
    codes, toks = bsq.quantize(lats)
    qfeats = run("codes_to_qfeats", codes, tokens)[:, : feats.shape[1]]

    rows = batch.lengths > 0
    frames, tokens = frames * rows, tokens * rows
    per_frame, codebook = bsq.entropies(lats, tokens, inv_temperature=config.loss.inv_temperature)
    terms = {"entropy": per_frame - config.loss.diversity * codebook}
    if config.loss.feature:
        terms["feature"] = losses.feature_loss(qfeats, jax.lax.stop_gradient(feats), frames)
    real = frame_mask(tokens, toks.shape[1])
    counts = jnp.zeros(model.config.quantizer.codebook_size, jnp.int32).at[toks].add(real.astype(jnp.int32))
    notes = {"entropy_per_frame": per_frame, "entropy_of_codebook": codebook}
    return Outcome(terms, frames.sum().astype(jnp.float32), notes=notes, counts=counts), qfeats


def as_audio(config: TrainConfig, batch: Batch, real: Array, fake: Array, samples: Array, terms: dict) -> Outcome:
    """Compare two signals over their real samples."""
    samples = samples * (batch.lengths > 0)
    real, fake = (zero_padding(sig[..., None], samples)[..., 0] for sig in (real, fake))
    if config.loss.mel:
        mel = losses.mel_loss(fake, real, samples, config.loss.mels, SAMPLE_RATE_HZ)
        terms = {**terms, "mel": mel}
    return Outcome(terms, samples.sum().astype(jnp.float32), real, fake)
