"""Renaming and transposing tensors by rules, and the rules between official checkpoints and our parameters.

This module uses NumPy only. Rules are data, and the same rules serve import and export. `translate` is strict, and
reports all tensors that do not match in one error.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from focalcodec_jax.errors import CheckpointError

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Transform:
    """A lossless change of layout. `inverse` is None for transforms that are used on import only."""

    name: str
    forward: Callable[..., np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray] | None


KEEP = Transform("keep", lambda a: a, lambda a: a)
LINEAR = Transform("linear (out, in) → (in, out)", lambda a: a.transpose(1, 0), lambda a: a.transpose(1, 0))
CONV = Transform("conv (out, in, k) → (k, in, out)", lambda a: a.transpose(2, 1, 0), lambda a: a.transpose(2, 1, 0))
SPREAD = Transform("conv-T (in, out, k) → (k, in, out)", lambda a: a.transpose(2, 0, 1), lambda a: a.transpose(1, 2, 0))
POINTWISE = Transform("conv (out, in, 1) → (in, out)", lambda a: a.squeeze(2).T, lambda a: a.T[:, :, None])
COLUMN = Transform("(dim, 1) → (dim)", lambda a: a.squeeze(1), lambda a: a[:, None])
JOIN = Transform("q, k, v → qkv", lambda *parts: np.concatenate(parts, axis=0), None)
HEADS = Transform("(1, heads, 1, 1) → (heads)", lambda a: a.squeeze((0, 2, 3)), lambda a: a[None, :, None, None])


@dataclass(frozen=True)
class Rule:
    """Combines the tensors `sources` into the tensor `target`.

    In names, {i} and {j} match a number, and {rest} matches any text.
    """

    sources: tuple[str, ...]
    target: str
    transform: Transform = KEEP

    def inverted(self) -> "Rule":
        """The rule in the other direction."""
        if self.transform.inverse is None or len(self.sources) != 1:
            raise ValueError(f"the rule for {self.target} cannot be inverted")
        inverse = Transform(self.transform.name, self.transform.inverse, self.transform.forward)
        return Rule((self.target,), self.sources[0], inverse)


def flax_path(name: str) -> str:
    """Parameter path of an official name. For example, `layers.3` becomes the submodule `layers_3`."""
    return re.sub(r"\.(\{\w+\})", r"_\1", name).replace(".", "/")


def affine(source: str, transform: Transform = LINEAR, target: str | None = None) -> tuple[Rule, ...]:
    """Rules for the weight and bias of a linear layer or a convolution."""
    path = target or flax_path(source)
    return Rule((f"{source}.weight",), f"{path}/kernel", transform), Rule((f"{source}.bias",), f"{path}/bias")


def norm(source: str) -> tuple[Rule, ...]:
    """Rules for LayerNorm, and for the DynamicTanh of the causal models."""
    path = flax_path(source)
    return (
        Rule((f"{source}.weight",), f"{path}/scale"),
        Rule((f"{source}.bias",), f"{path}/bias"),
        Rule((f"{source}.alpha",), f"{path}/alpha"),
    )


def value(source: str, transform: Transform = KEEP, target: str | None = None) -> tuple[Rule, ...]:
    """Rule for a single tensor."""
    return (Rule((source,), target or flax_path(source), transform),)


def joined_attention(source: str, target: str) -> tuple[Rule, ...]:
    """Rules that join the separate projections q, k and v of an attention layer into one."""
    return tuple(
        Rule(tuple(f"{source}.{part}_proj.{kind}" for part in "qkv"), f"{target}.qkv_proj.{kind}", JOIN)
        for kind in ("weight", "bias")
    )


def _focal_block(block: str) -> tuple[Rule, ...]:
    modulation = f"{block}.modulation"
    return (
        *norm(f"{block}.modulation_norm"),
        *norm(f"{block}.feed_forward_norm"),
        *value(f"{block}.modulation_gamma"),
        *value(f"{block}.feed_forward_gamma"),
        *affine(f"{block}.feed_forward.in_proj"),
        *affine(f"{block}.feed_forward.out_proj"),
        *affine(f"{modulation}.in_proj"),
        *affine(f"{modulation}.layers.{{j}}.0", CONV, flax_path(f"{modulation}.layers.{{j}}")),
        *affine(f"{modulation}.context_proj", POINTWISE),
        *norm(f"{modulation}.norm"),
        *affine(f"{modulation}.out_proj"),
    )


_EXTRACTOR = "encoder.feature_extractor.layers.{i}"
_TRANSFORMER = "encoder.encoder.layers.{i}"
OFFICIAL: tuple[Rule, ...] = (
    # encoder
    *affine(f"{_EXTRACTOR}.conv", CONV),
    *norm(f"{_EXTRACTOR}.norm"),
    *norm("encoder.norm"),
    *affine("encoder.feature_proj"),
    *affine("encoder.encoder.positional_embedding.conv", CONV),
    *value("encoder.encoder.relative_embedding.weight", target="encoder/encoder/relative_embedding/embedding"),
    *norm(f"{_TRANSFORMER}.attention_norm"),
    *affine(f"{_TRANSFORMER}.attention.qkv_proj"),
    *affine(f"{_TRANSFORMER}.attention.gru_rel_pos_linear"),
    *value(f"{_TRANSFORMER}.attention.gru_rel_pos_const", HEADS),
    *affine(f"{_TRANSFORMER}.attention.out_proj"),
    *norm(f"{_TRANSFORMER}.feed_forward_norm"),
    *affine(f"{_TRANSFORMER}.feed_forward.in_proj"),
    *affine(f"{_TRANSFORMER}.feed_forward.out_proj"),
    # compressor
    *affine("compressor.layers.{i}.downscale.downscale", CONV),
    *value("compressor.layers.{i}.downscale.activation.alpha", COLUMN),
    *_focal_block("compressor.layers.{i}.focal_block"),
    *affine("compressor.out_proj"),
    # decompressor
    *affine("decompressor.in_proj"),
    *_focal_block("decompressor.layers.{i}.focal_block"),
    *value("decompressor.layers.{i}.upscale.activation.alpha", COLUMN),
    *affine("decompressor.layers.{i}.upscale.upscale", SPREAD),
    *affine("decompressor.refiner.in_proj"),
    *affine("decompressor.refiner.out_proj"),
    # decoder
    *affine("decoder.backbone.embedding", CONV),
    *norm("decoder.backbone.input_norm"),
    *affine("decoder.backbone.layers.{i}.dwconv", CONV),
    *norm("decoder.backbone.layers.{i}.norm"),
    *affine("decoder.backbone.layers.{i}.pwconv1"),
    *affine("decoder.backbone.layers.{i}.pwconv2"),
    *value("decoder.backbone.layers.{i}.gamma"),
    *norm("decoder.backbone.output_norm"),
    *affine("decoder.head.proj"),
)
"""Rules from official v0.0.2 names to parameter paths."""

TO_OFFICIAL: tuple[Rule, ...] = tuple(rule.inverted() for rule in OFFICIAL)
"""Rules from parameter paths to official v0.0.2 names."""

_PLACEHOLDERS = {"i": r"(?P<i>\d+)", "j": r"(?P<j>\d+)", "rest": r"(?P<rest>.+)"}


def pattern(name: str) -> re.Pattern[str]:
    """Convert a name of a rule to a regular expression."""
    parts = re.split(r"\{(\w+)\}", name)
    return re.compile("".join(_PLACEHOLDERS[p] if odd % 2 else re.escape(p) for odd, p in enumerate(parts)))


@dataclass
class _Claim:
    """The source names that a rule has matched for one target."""

    rule: Rule
    found: dict[int, str]
    """Names by their position in `rule.sources`."""


def _match(rules: Iterable[Rule], names: Iterable[str]) -> tuple[dict[str, list[_Claim]], list[str], list[str]]:
    """Match each name with the first rule that fits.

    Returns:
        Claims by target, names without a rule, and descriptions of names that map to the same source.
    """
    compiled = [(rule, slot, pattern(source)) for rule in rules for slot, source in enumerate(rule.sources)]
    claims: dict[str, list[_Claim]] = defaultdict(list)
    unmapped, doubled = [], []
    for name in sorted(names):
        for rule, slot, expression in compiled:
            if match := expression.fullmatch(name):
                target = rule.target.format(**match.groupdict())
                claim = next((c for c in claims[target] if c.rule is rule), None)
                if claim is None:
                    claim = _Claim(rule, {})
                    claims[target].append(claim)
                if slot in claim.found:
                    doubled.append(f"{name} and {claim.found[slot]} (both are {target})")
                claim.found[slot] = name
                break
        else:
            unmapped.append(name)
    return claims, unmapped, doubled


def _source_name(rules: Iterable[Rule], target: str) -> str:
    """Name of a missing target in the source layout."""
    for rule in rules:
        if match := pattern(rule.target).fullmatch(target):
            return " + ".join(source.format(**match.groupdict()) for source in rule.sources)
    return target


def translate(
    rules: Iterable[Rule], tensors: Tensors, expected: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, np.ndarray]:
    """Rename and transform each tensor by the first rule that fits its name.

    Args:
        rules: rules in order of priority.
        tensors: arrays by source name.
        expected: shapes of all targets. Without them, missing and wrongly shaped targets are not detected.

    Returns:
        Arrays by target name.

    Raises:
        CheckpointError: Tensors are unmapped, missing, doubled or wrongly shaped. The message lists all of them.
    """
    rules = tuple(rules)
    claims, unmapped, doubled = _match(rules, tensors)
    result: dict[str, np.ndarray] = {}
    missing, misshapen = [], []
    for target, rivals in claims.items():
        if len(rivals) > 1:
            names = sorted(name for claim in rivals for name in claim.found.values())
            doubled.append(f"{' and '.join(names)} (both are {target})")
            continue
        claim = rivals[0]
        absent = [slot for slot in range(len(claim.rule.sources)) if slot not in claim.found]
        if absent:
            missing.append(f"{' + '.join(claim.rule.sources[slot] for slot in absent)} for {target}")
            continue
        sources = [claim.found[slot] for slot in range(len(claim.rule.sources))]
        arrays = [np.asarray(tensors[name]) for name in sources]
        try:
            result[target] = claim.rule.transform.forward(*arrays)
        except (ValueError, IndexError):
            shapes = ", ".join(str(array.shape) for array in arrays)
            misshapen.append(f"{' + '.join(sources)} is {shapes}, which does not match {claim.rule.transform.name}")
            continue
        if expected is None:
            continue
        if target not in expected:
            unmapped += sources
        elif result[target].shape != tuple(expected[target]):
            name = " + ".join(sources)
            misshapen.append(f"{name} is {result[target].shape} as {target}, should be {tuple(expected[target])}")
    if expected is not None:
        missing += [_source_name(rules, target) for target in expected if target not in claims]
    problems = {"unmapped": unmapped, "missing": missing, "doubled": doubled, "wrongly shaped": misshapen}
    if any(problems.values()):
        lines = [f"{kind} ({len(names)}): {', '.join(sorted(names))}" for kind, names in problems.items() if names]
        raise CheckpointError("the tensors do not match the model; " + "; ".join(lines))
    return result


def drop(tensors: Tensors, unused: Mapping[str, str]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Remove the tensors that a model does not use.

    Args:
        tensors: arrays by name.
        unused: regular expressions of the names to remove, by the reason.

    Returns:
        The remaining tensors, and the names of the removed ones by the reason.
    """
    kept, dropped = {}, {}
    for name, tensor in tensors.items():
        reason = next((why for why, names in unused.items() if re.fullmatch(names, name)), None)
        if reason is None:
            kept[name] = tensor
        else:
            dropped.setdefault(reason, []).append(name)
    return kept, dropped
