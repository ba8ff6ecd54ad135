"""Decoder stage: a decoder learns to generate audio from the continuous features of a frozen encoder.

The stage does not depend on the quantizer.

Source: Della Libera et al., "FocalCodec" (2025).
"""

import jax
import jax.numpy as jnp

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.nn import lengths as count

from .base import Batch, Outcome, Params, Stage, StageContext, compare_audio


def forward(context: StageContext, params: Params, batch: Batch) -> Outcome:
    """Encode whole recordings, crop their features, and decode the crops."""
    hop, crop_frames = context.model.config.decoder.hop_length, context.crop_frames
    frames = count.samples_to_frames(context.model.config, batch.lengths)
    feats = jax.lax.stop_gradient(context.apply(params, "sig_to_feats", batch.sig, batch.lengths))
    real = jnp.pad(batch.sig, ((0, 0), (0, hop)))[:, : feats.shape[1] * hop]
    if crop_frames is not None and crop_frames < feats.shape[1]:
        start = (batch.crop * (jnp.maximum(frames - crop_frames, 0) + 1)).astype(jnp.int32)
        feats = jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, crop_frames))(feats, start)
        real = jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, crop_frames * hop))(real, start * hop)
        frames = jnp.minimum(frames, crop_frames)
    return compare_audio(context, batch, real, context.apply(params, "feats_to_sig", feats, frames), frames * hop)


DECODER = Stage(
    name="decoder",
    forward=forward,
    passes=("encoder", "decoder"),
    trains=("decoder",),
    output_rates_hz=(SAMPLE_RATE_HZ,),
    discriminators=True,
)
