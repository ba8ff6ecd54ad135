"""Layouts of WavLM checkpoints. The tensors are renamed to the official v0.0.2 names of a codec's encoder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from focalcodec_jax.errors import CheckpointError

from .files import to_numpy
from .mapping import Rule, Tensors, Transform, drop, joined_attention, translate


def _fold_weight_norm(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Compute w = g · v/‖v‖ for each kernel position, from g (1, 1, kernel) and v (out, in, kernel)."""
    norm = np.sqrt((v.astype(np.float64) ** 2).sum(axis=(0, 1), keepdims=True))
    return (g * (v / norm)).astype(np.float32)


FOLD = Transform("weight norm g, v → w", _fold_weight_norm, None)


def _renamed(source: str, target: str) -> tuple[Rule, ...]:
    return tuple(Rule((f"{source}.{kind}",), f"{target}.{kind}") for kind in ("weight", "bias"))


_LAYER, _OURS = "encoder.layers.{i}", "encoder.encoder.layers.{i}"
_EXTRACTOR = "encoder.feature_extractor.layers.{i}"
_POSITION = "encoder.encoder.positional_embedding.conv"
_BIAS_TABLE = "encoder.encoder.relative_embedding.weight"

HUGGING_FACE: tuple[Rule, ...] = (
    Rule(("feature_extractor.conv_layers.{i}.conv.weight",), f"{_EXTRACTOR}.conv.weight"),
    *_renamed("feature_extractor.conv_layers.{i}.layer_norm", f"{_EXTRACTOR}.norm"),
    *_renamed("feature_projection.layer_norm", "encoder.norm"),
    *_renamed("feature_projection.projection", "encoder.feature_proj"),
    Rule(
        tuple(f"encoder.pos_conv_embed.conv.parametrizations.weight.original{n}" for n in (0, 1)),
        f"{_POSITION}.weight",
        FOLD,
    ),
    Rule(tuple(f"encoder.pos_conv_embed.conv.weight_{n}" for n in "gv"), f"{_POSITION}.weight", FOLD),
    Rule(("encoder.pos_conv_embed.conv.bias",), f"{_POSITION}.bias"),
    Rule(("encoder.layers.0.attention.rel_attn_embed.weight",), _BIAS_TABLE),
    *joined_attention(f"{_LAYER}.attention", f"{_OURS}.attention"),
    *_renamed(f"{_LAYER}.attention.out_proj", f"{_OURS}.attention.out_proj"),
    *_renamed(f"{_LAYER}.attention.gru_rel_pos_linear", f"{_OURS}.attention.gru_rel_pos_linear"),
    Rule((f"{_LAYER}.attention.gru_rel_pos_const",), f"{_OURS}.attention.gru_rel_pos_const"),
    *_renamed(f"{_LAYER}.layer_norm", f"{_OURS}.attention_norm"),
    *_renamed(f"{_LAYER}.feed_forward.intermediate_dense", f"{_OURS}.feed_forward.in_proj"),
    *_renamed(f"{_LAYER}.feed_forward.output_dense", f"{_OURS}.feed_forward.out_proj"),
    *_renamed(f"{_LAYER}.final_layer_norm", f"{_OURS}.feed_forward_norm"),
)
"""Rules for the transformers layout, as in `microsoft/wavlm-large`. Both names of the weight norm are supported."""

MICROSOFT: tuple[Rule, ...] = (
    Rule(("feature_extractor.conv_layers.{i}.0.weight",), f"{_EXTRACTOR}.conv.weight"),
    *_renamed("feature_extractor.conv_layers.{i}.2.1", f"{_EXTRACTOR}.norm"),
    *_renamed("layer_norm", "encoder.norm"),
    *_renamed("post_extract_proj", "encoder.feature_proj"),
    Rule(("encoder.pos_conv.0.weight_g", "encoder.pos_conv.0.weight_v"), f"{_POSITION}.weight", FOLD),
    Rule(("encoder.pos_conv.0.bias",), f"{_POSITION}.bias"),
    Rule(("encoder.layers.0.self_attn.relative_attention_bias.weight",), _BIAS_TABLE),
    *joined_attention(f"{_LAYER}.self_attn", f"{_OURS}.attention"),
    *_renamed(f"{_LAYER}.self_attn.out_proj", f"{_OURS}.attention.out_proj"),
    *_renamed(f"{_LAYER}.self_attn.grep_linear", f"{_OURS}.attention.gru_rel_pos_linear"),
    Rule((f"{_LAYER}.self_attn.grep_a",), f"{_OURS}.attention.gru_rel_pos_const"),
    *_renamed(f"{_LAYER}.self_attn_layer_norm", f"{_OURS}.attention_norm"),
    *_renamed(f"{_LAYER}.fc1", f"{_OURS}.feed_forward.in_proj"),
    *_renamed(f"{_LAYER}.fc2", f"{_OURS}.feed_forward.out_proj"),
    *_renamed(f"{_LAYER}.final_layer_norm", f"{_OURS}.feed_forward_norm"),
)
"""Rules for the layout of Microsoft's `WavLM-Large.pt`."""

UNUSED: Mapping[str, str] = {
    "mask embedding, used in pre-training only": r"masked_spec_embed|mask_emb",
    "final norm, which FocalCodec does not apply": r"encoder\.layer_norm\.(weight|bias)",
}
"""Tensors that a codec does not use, as regular expressions by the reason."""


@dataclass(frozen=True)
class WavLMCheckpoint:
    """Tensors and sizes of a WavLM.

    Attributes:
        layout: name of the layout, for reports.
        rules: rules from the layout to official v0.0.2 names.
        sizes: fields of `EncoderConfig`.
        tensors: arrays by name.
    """

    layout: str
    rules: tuple[Rule, ...]
    sizes: Mapping[str, Any]
    tensors: Tensors


def from_hugging_face(config: Mapping[str, Any], tensors: Tensors, path: Path) -> WavLMCheckpoint:
    """A checkpoint in the transformers layout.

    Args:
        config: content of its `config.json`.
        tensors: arrays by name.
        path: the configuration file, for error messages.

    Raises:
        CheckpointError: The model is not a WavLM, or is a base model.
    """
    return WavLMCheckpoint("WavLM (Hugging Face)", HUGGING_FACE, hugging_face_sizes(config, path), tensors)


def from_microsoft(content: Mapping[str, Any], path: Path) -> WavLMCheckpoint:
    """A checkpoint in Microsoft's layout.

    Args:
        content: content of its file.
        path: the file, for error messages.

    Raises:
        CheckpointError: The model is a base model, or the file contains entries that are not tensors.
    """
    sizes = microsoft_sizes(content["cfg"], path)
    return WavLMCheckpoint("WavLM (Microsoft)", MICROSOFT, sizes, to_numpy(content["model"], path))


def encoder_tensors(checkpoint: WavLMCheckpoint, num_layers: int) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Rename the tensors of the first `num_layers` layers.

    Returns:
        Tensors by official v0.0.2 name, and the names of unused tensors by the reason.

    Raises:
        CheckpointError: Tensors do not match the layout. The message lists all of them.
    """

    def layer(name: str) -> int:
        match = re.match(r"encoder\.layers\.(\d+)\.", name)
        return int(match[1]) if match else -1

    kept, dropped = drop(checkpoint.tensors, UNUSED)
    beyond = [name for name in kept if layer(name) >= num_layers]
    if beyond:
        dropped[f"layers after the first {num_layers}"] = beyond
    return translate(checkpoint.rules, {name: kept[name] for name in kept.keys() - set(beyond)}), dropped


def hugging_face_sizes(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Fields of `EncoderConfig` from a transformers `config.json`.

    Raises:
        CheckpointError: The model is not a WavLM, or is a base model.
    """
    if config.get("model_type") != "wavlm":
        raise CheckpointError(f"{path} is of a {config.get('model_type')!r} model, not of WavLM")
    _require_large(config.get("feat_extract_norm") == "layer" and config.get("do_stable_layer_norm"), path)
    _require_no_bias(config.get("conv_bias"), path)
    return {
        "hidden_dims": tuple(config["conv_dim"]),
        "kernel_sizes": tuple(config["conv_kernel"]),
        "strides": tuple(config["conv_stride"]),
        "dim": config["hidden_size"],
        "ffn_dim": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "num_buckets": config["num_buckets"],
        "max_distance": config["max_bucket_distance"],
        "conv_pos": config["num_conv_pos_embeddings"],
        "conv_pos_groups": config["num_conv_pos_embedding_groups"],
    }


def microsoft_sizes(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Fields of `EncoderConfig` from the `cfg` of a Microsoft checkpoint.

    Raises:
        CheckpointError: The model is a base model.
    """
    _require_large(config.get("extractor_mode") == "layer_norm" and config.get("layer_norm_first"), path)
    _require_no_bias(config.get("conv_bias"), path)
    layers = []  # from a Python expression such as "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    found = re.findall(r"\[\((\d+),\s*(\d+),\s*(\d+)\)\](?:\s*\*\s*(\d+))?", config["conv_feature_layers"])
    for dim, kernel_size, stride, times in found:
        layers += [(int(dim), int(kernel_size), int(stride))] * int(times or 1)
    hidden_dims, kernel_sizes, strides = zip(*layers, strict=True)
    return {
        "hidden_dims": hidden_dims,
        "kernel_sizes": kernel_sizes,
        "strides": strides,
        "dim": config["encoder_embed_dim"],
        "ffn_dim": config["encoder_ffn_embed_dim"],
        "num_heads": config["encoder_attention_heads"],
        "num_buckets": config["num_buckets"],
        "max_distance": config["max_distance"],
        "conv_pos": config["conv_pos"],
        "conv_pos_groups": config["conv_pos_groups"],
    }


def _require_large(large: object, path: Path) -> None:
    if not large:
        raise CheckpointError(
            f"{path} is a WavLM base model (group norm, post-norm); FocalCodec supports WavLM-large only"
        )


def _require_no_bias(conv_bias: object, path: Path) -> None:
    if conv_bias:
        raise CheckpointError(f"{path} has biases in its feature extractor; WavLM-large has none")
