"""Layouts of the published FocalCodec checkpoints. v0.0.2 is the layout we keep; v0.0.1 is renamed into it."""

import re
from collections.abc import Mapping

import numpy as np

from .mapping import Rule, Tensors, Transform, translate

JOIN = Transform("q, k, v → qkv", lambda *parts: np.concatenate(parts, axis=0), None)

UNUSED: Mapping[str, str] = {
    "final norm of WavLM, which FocalCodec does not apply": r"encoder\.encoder\.norm\.(weight|bias)",
    "bit weights of the quantizer, a constant": r"quantizer\.mask",
}
"""Tensors that v0.0.1 files carry and the model never uses: why, and their names."""

_ATTENTION = "encoder.encoder.layers.{i}.attention"


def joined(prefix: str, target: str) -> tuple[Rule, ...]:
    """Three projections into one."""
    return tuple(
        Rule(tuple(f"{prefix}.{part}_proj.{kind}" for part in "qkv"), f"{target}.qkv_proj.{kind}", JOIN)
        for kind in ("weight", "bias")
    )


V001: tuple[Rule, ...] = (
    *joined(_ATTENTION, _ATTENTION),
    Rule(("compressor.layers.{i}.0.{rest}",), "compressor.layers.{i}.downscale.{rest}"),
    Rule(("compressor.layers.{i}.1.{rest}",), "compressor.layers.{i}.focal_block.{rest}"),
    Rule(("decompressor.layers.{i}.0.{rest}",), "decompressor.layers.{i}.focal_block.{rest}"),
    Rule(("decompressor.layers.{i}.1.{rest}",), "decompressor.layers.{i}.upscale.{rest}"),
    Rule(("{rest}",), "{rest}"),
)
"""v0.0.1 names → v0.0.2 names; what neither touches keeps its name."""


def layout(tensors: Tensors) -> str:
    """`v0.0.1` or `v0.0.2`, by whether attention keeps its three projections apart."""
    return "v0.0.1" if any(".attention.q_proj." in name for name in tensors) else "v0.0.2"


def drop(tensors: Tensors, unused: Mapping[str, str]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Split off the tensors that `unused` names; returns what is kept, and what went by which rule."""
    kept, dropped = {}, {}
    for name, tensor in tensors.items():
        reason = next((why for why, names in unused.items() if re.fullmatch(names, name)), None)
        if reason is None:
            kept[name] = tensor
        else:
            dropped.setdefault(reason, []).append(name)
    return kept, dropped


def to_v002(tensors: Tensors) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Either published layout → v0.0.2, and what was dropped by which rule.

    Raises:
        CheckpointError: a projection of q, k, v is missing, or a tensor is there twice.
    """
    kept, dropped = drop(tensors, UNUSED)
    return (translate(V001, kept) if layout(kept) == "v0.0.1" else kept), dropped
