"""The table: which tensor of an official checkpoint is which parameter of ours, and how it is turned.

Numpy in, numpy out; nothing here imports a model. A rule is data, one table serves both directions, and
`translate` is strict: whatever does not fit is listed in one error.
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
    """A change of layout that loses no bit; `inverse` is None for the few that only import."""

    name: str
    forward: Callable[..., np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray] | None


KEEP = Transform("keep", lambda a: a, lambda a: a)
LINEAR = Transform("linear (out, in) → (in, out)", lambda a: a.transpose(1, 0), lambda a: a.transpose(1, 0))
CONV = Transform("conv (out, in, k) → (k, in, out)", lambda a: a.transpose(2, 1, 0), lambda a: a.transpose(2, 1, 0))
SPREAD = Transform("conv-T (in, out, k) → (k, in, out)", lambda a: a.transpose(2, 0, 1), lambda a: a.transpose(1, 2, 0))
POINTWISE = Transform("conv (out, in, 1) → (in, out)", lambda a: a.squeeze(2).T, lambda a: a.T[:, :, None])
COLUMN = Transform("(dim, 1) → (dim)", lambda a: a.squeeze(1), lambda a: a[:, None])
HEADS = Transform("(1, heads, 1, 1) → (heads)", lambda a: a.squeeze((0, 2, 3)), lambda a: a[None, :, None, None])


@dataclass(frozen=True)
class Rule:
    """`sources` together become `target`. In names, {i} and {j} stand for a number, {rest} for anything."""

    sources: tuple[str, ...]
    target: str
    transform: Transform = KEEP

    def inverted(self) -> "Rule":
        if self.transform.inverse is None or len(self.sources) != 1:
            raise ValueError(f"the rule for {self.target} cannot be inverted")
        turned = Transform(self.transform.name, self.transform.inverse, self.transform.forward)
        return Rule((self.target,), self.sources[0], turned)


def flax_path(name: str) -> str:
    """Module path of an official name: `layers.3` is the submodule `layers_3`."""
    return re.sub(r"\.(\{\w+\})", r"_\1", name).replace(".", "/")


def affine(source: str, transform: Transform = LINEAR, target: str | None = None) -> tuple[Rule, ...]:
    path = target or flax_path(source)
    return Rule((f"{source}.weight",), f"{path}/kernel", transform), Rule((f"{source}.bias",), f"{path}/bias")


def norm(source: str) -> tuple[Rule, ...]:
    """LayerNorm, or the causal models' DynamicTanh."""
    path = flax_path(source)
    return (
        Rule((f"{source}.weight",), f"{path}/scale"),
        Rule((f"{source}.bias",), f"{path}/bias"),
        Rule((f"{source}.alpha",), f"{path}/alpha"),
    )


def value(source: str, transform: Transform = KEEP, target: str | None = None) -> tuple[Rule, ...]:
    return (Rule((source,), target or flax_path(source), transform),)


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
"""Official v0.0.2 names ↔ parameter paths."""

TO_OFFICIAL: tuple[Rule, ...] = tuple(rule.inverted() for rule in OFFICIAL)


_HOLES = {"i": r"(?P<i>\d+)", "j": r"(?P<j>\d+)", "rest": r"(?P<rest>.+)"}


def pattern(name: str) -> re.Pattern[str]:
    """A rule's name as a regular expression."""
    parts = re.split(r"\{(\w+)\}", name)
    return re.compile("".join(_HOLES[p] if odd % 2 else re.escape(p) for odd, p in enumerate(parts)))


@dataclass
class _Claim:
    """What a rule has gathered so far for one target."""

    rule: Rule
    found: dict[int, str]


def _match(rules: Iterable[Rule], names: Iterable[str]) -> tuple[dict[str, list[_Claim]], list[str], list[str]]:
    """Claims by target, unmapped names, doubled names. The first rule that fits a name takes it."""
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
    """What a missing target is called in the source's own layout."""
    for rule in rules:
        if match := pattern(rule.target).fullmatch(target):
            return " + ".join(source.format(**match.groupdict()) for source in rule.sources)
    return target


def translate(
    rules: Iterable[Rule], tensors: Tensors, expected: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, np.ndarray]:
    """Rename and turn every tensor by the first rule that fits its name.

    Args:
        rules: ordered rules.
        tensors: source names to arrays.
        expected: every target's shape, where they are known; else no target counts as missing or wrongly shaped.

    Raises:
        CheckpointError: lists every unmapped, missing, doubled and wrongly shaped tensor.
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
            misshapen.append(f"{' + '.join(sources)} is {shapes}, not fit for {claim.rule.transform.name}")
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
        raise CheckpointError("the tensors do not fit the model; " + "; ".join(lines))
    return result
