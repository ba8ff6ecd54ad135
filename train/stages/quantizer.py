"""Quantizer stage: compressor and decompressor learn to rebuild the features of a frozen encoder.

Source: Della Libera et al., "FocalCodec" (2025).
"""

import jax

from focalcodec_jax.nn import lengths as count

from .base import Batch, Outcome, Params, Stage, StageContext, codebook_is_small_enough, through_codes


def forward(context: StageContext, params: Params, batch: Batch) -> Outcome:
    """Encode whole recordings, quantize the features and rebuild them."""
    frames = count.samples_to_frames(context.model.config, batch.lengths)
    feats = jax.lax.stop_gradient(context.apply(params, "sig_to_feats", batch.sig, batch.lengths))
    return through_codes(context, params, batch, feats, frames)[0]


QUANTIZER = Stage(
    name="quantizer",
    forward=forward,
    passes=("encoder", "compressor", "decompressor"),
    trains=("compressor", "decompressor"),
    codec_checks=(codebook_is_small_enough,),
)
