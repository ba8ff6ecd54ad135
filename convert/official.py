"""Layouts of the published FocalCodec checkpoints. Layout v0.0.1 is renamed to v0.0.2, which this package uses."""

from collections.abc import Mapping

import numpy as np

from .mapping import Rule, Tensors, drop, joined_attention, translate

UNUSED: Mapping[str, str] = {
    "final norm of WavLM, which FocalCodec does not apply": r"encoder\.encoder\.norm\.(weight|bias)",
    "bit weights of the quantizer, a constant": r"quantizer\.mask",
}
"""Tensors of v0.0.1 files that the model does not use, as regular expressions by the reason."""

_ATTENTION = "encoder.encoder.layers.{i}.attention"

V001: tuple[Rule, ...] = (
    *joined_attention(_ATTENTION, _ATTENTION),
    Rule(("compressor.layers.{i}.0.{rest}",), "compressor.layers.{i}.downscale.{rest}"),
    Rule(("compressor.layers.{i}.1.{rest}",), "compressor.layers.{i}.focal_block.{rest}"),
    Rule(("decompressor.layers.{i}.0.{rest}",), "decompressor.layers.{i}.focal_block.{rest}"),
    Rule(("decompressor.layers.{i}.1.{rest}",), "decompressor.layers.{i}.upscale.{rest}"),
    Rule(("{rest}",), "{rest}"),
)
"""Rules from v0.0.1 names to v0.0.2 names. Other tensors keep their names."""


def layout(tensors: Tensors) -> str:
    """Name of the layout, `v0.0.1` or `v0.0.2`. In v0.0.1, attention layers have three separate projections."""
    return "v0.0.1" if any(".attention.q_proj." in name for name in tensors) else "v0.0.2"


def to_v002(tensors: Tensors) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Convert a published layout to v0.0.2.

    Returns:
        Tensors by their v0.0.2 names, and the names of unused tensors by the reason.

    Raises:
        CheckpointError: One of the projections q, k and v is missing, or two tensors have the same v0.0.2 name.
    """
    kept, dropped = drop(tensors, UNUSED)
    return (translate(V001, kept) if layout(kept) == "v0.0.1" else kept), dropped
