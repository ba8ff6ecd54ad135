"""End-to-end stages: crops of audio pass through the whole codec. Fine-tuning trains some parts of a checkpoint."""

import dataclasses

import jax.numpy as jnp

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.nn import lengths as count

from ..sections import PARTS
from .base import (
    Batch,
    Outcome,
    Params,
    Stage,
    StageContext,
    codebook_is_small_enough,
    compare_audio,
    joined,
    through_codes,
)


def forward(context: StageContext, params: Params, batch: Batch) -> Outcome:
    """Encode crops, quantize, and decode them."""
    codec = context.model.config
    frames = count.samples_to_frames(codec, batch.lengths)
    feats = context.apply(params, "sig_to_feats", batch.sig, batch.lengths)
    features, qfeats = through_codes(context, params, batch, feats, frames)
    fake = context.apply(params, "feats_to_sig", qfeats, frames)
    real = jnp.pad(batch.sig, ((0, 0), (0, max(0, fake.shape[1] - batch.sig.shape[1]))))[:, : fake.shape[1]]
    samples = jnp.minimum(frames * codec.decoder.hop_length, batch.lengths)
    return joined(features, compare_audio(context, batch, real, fake, samples))


END_TO_END = Stage(
    name="end-to-end",
    forward=forward,
    passes=PARTS,
    trains=PARTS,
    crops=True,
    output_rates_hz=(SAMPLE_RATE_HZ,),
    discriminators=True,
    codec_checks=(codebook_is_small_enough,),
)
FINE_TUNE = dataclasses.replace(END_TO_END, name="fine-tune", trains=None, needs_checkpoint=True)
