"""Rename and transpose tensors by rules. The rules between official checkpoints and the parameters are also here.

This module uses only NumPy. The same rules serve import and export. `translate` is strict, and reports all tensors that
do not match in one error.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

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
TRANSPOSED_CONV = Transform(
    "transposed conv (in, out, k) → (k, in, out)", lambda a: a.transpose(2, 0, 1), lambda a: a.transpose(1, 2, 0)
)
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
    *affine("decompressor.layers.{i}.upscale.upscale", TRANSPOSED_CONV),
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
    """Convert a name in a rule to a regular expression."""
    parts = re.split(r"\{(\w+)\}", name)
    return re.compile("".join(_PLACEHOLDERS[p] if odd % 2 else re.escape(p) for odd, p in enumerate(parts)))


@dataclass
class _Claim:
    """The source names that a rule has matched for one target."""

    rule: Rule
    found: dict[int, str]
    """Names by their position in `rule.sources`."""


@dataclass
class _Problems:
    """Descriptions of the tensors that do not match."""

    unmapped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise a CheckpointError that lists all problems, if there are any."""
        kinds = {
            "unmapped": self.unmapped,
            "missing": self.missing,
            "doubled": self.doubled,
            "wrongly shaped": self.misshapen,
        }
        lines = [f"{kind} ({len(names)}): {', '.join(sorted(names))}" for kind, names in kinds.items() if names]
        if lines:
            raise CheckpointError("the tensors do not match the model; " + "; ".join(lines))


def _match(rules: Iterable[Rule], names: Iterable[str], problems: _Problems) -> dict[str, list[_Claim]]:
    """Match each name with the first rule that fits. Returns the claims by target."""
    compiled = [(rule, slot, pattern(source)) for rule in rules for slot, source in enumerate(rule.sources)]
    claims: dict[str, list[_Claim]] = defaultdict(list)
    for name in sorted(names):
        for rule, slot, expression in compiled:
            if match := expression.fullmatch(name):
                target = rule.target.format(**match.groupdict())
                claim = next((c for c in claims[target] if c.rule is rule), None)
                if claim is None:
                    claim = _Claim(rule, {})
                    claims[target].append(claim)
                if slot in claim.found:
                    problems.doubled.append(f"{name} and {claim.found[slot]} (both are {target})")
                claim.found[slot] = name
                break
        else:
            problems.unmapped.append(name)
    return claims


def _transformed(target: str, claims: list[_Claim], tensors: Tensors, problems: _Problems) -> np.ndarray | None:
    """Compute the array of a target. Returns None if the sources do not match its rule."""
    if len(claims) > 1:
        names = sorted(name for claim in claims for name in claim.found.values())
        problems.doubled.append(f"{' and '.join(names)} (both are {target})")
        return None
    rule, found = claims[0].rule, claims[0].found
    absent = [source for slot, source in enumerate(rule.sources) if slot not in found]
    if absent:
        problems.missing.append(f"{' + '.join(absent)} for {target}")
        return None
    names = [found[slot] for slot in range(len(rule.sources))]
    arrays = [np.asarray(tensors[name]) for name in names]
    try:
        return rule.transform.forward(*arrays)
    except (ValueError, IndexError):
        shapes = ", ".join(str(array.shape) for array in arrays)
        problems.misshapen.append(f"{' + '.join(names)} is {shapes}, which does not match {rule.transform.name}")
        return None


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
    rules, problems = tuple(rules), _Problems()
    claims = _match(rules, tensors, problems)
    result: dict[str, np.ndarray] = {}
    for target, rivals in claims.items():
        array = _transformed(target, rivals, tensors, problems)
        if array is None:
            continue
        result[target] = array
        names = [rivals[0].found[slot] for slot in sorted(rivals[0].found)]
        if expected is not None and target not in expected:
            problems.unmapped += names
        elif expected is not None and array.shape != tuple(expected[target]):
            name, shape = " + ".join(names), tuple(expected[target])
            problems.misshapen.append(f"{name} is {array.shape} as {target}, should be {shape}")
    for target in (expected or {}).keys() - claims.keys():
        problems.missing.append(_source_name(rules, target))
    problems.check()
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
