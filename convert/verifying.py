"""Do two checkpoints compute the same? Stage by stage, each stage fed with the first one's input to it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from focalcodec_jax.config import CodecConfig
from focalcodec_jax.errors import CheckpointError, FocalCodecError
from focalcodec_jax.pretrained import checkpoint_folder, load_pretrained

from .files import find_weights

STAGES = (
    ("encoder", "sig_to_feats"),
    ("compressor", "feats_to_lats"),
    ("quantizer", "lats_to_codes"),
    ("decompressor", "codes_to_qfeats"),
    ("decoder", "feats_to_sig"),
)
TOLERANCE = 1e-4
NEAR_ZERO = 1e-5
"""A latent this close to zero may fall on either side of it."""

Step = Callable[[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class StageError:
    """How far apart two codecs are after one stage: the largest difference over the largest value of the first."""

    stage: str
    shape: tuple[int, ...]
    alone: float
    """Both fed with what the first codec feeds this stage."""
    along: float
    """Each fed with what its own previous stage gave."""


@dataclass(frozen=True)
class Report:
    stages: tuple[StageError, ...]
    tokens: int
    differing: int
    near_zero: int
    """Of the differing tokens, those that a latent within 1e-5 of zero explains."""

    @property
    def agree(self) -> bool:
        close = all(error.alone <= TOLERANCE for error in self.stages if error.stage != "quantizer")
        return close and self.differing == self.near_zero


def verify(first: str, second: str, sig: np.ndarray, *, live: bool = False) -> Report:
    """Compare two checkpoints on a recording.

    Args:
        first, second: names or folders, as `load_pretrained` takes them.
        sig: (samples,) at 16 kHz.
        live: run the second one in the PyTorch original (package `focalcodec`) in place of this package.

    Raises:
        CheckpointError: one cannot be loaded, or the two are not of one architecture.
    """
    config, step_a = ours(first)
    other, step_b = original(second) if live else ours(second)
    for name, a, b in (
        ("output sample rate in Hz", config.sample_rate_out_hz, other.sample_rate_out_hz),
        ("codebook size", config.quantizer.codebook_size, other.quantizer.codebook_size),
        ("feature width", config.encoder.dim, other.encoder.dim),
        ("token rate in Hz", config.token_rate_hz, other.token_rate_hz),
    ):
        if a != b:
            raise CheckpointError(f"{first} and {second} cannot be compared: their {name} is {a} and {b}")
    return compare(step_a, step_b, sig)


def compare(step_a: Step, step_b: Step, sig: np.ndarray) -> Report:
    """Run both through every stage."""
    a = b = sig[None]
    stages = []
    toks_a = toks_b = lats = np.empty(0)
    for stage, method in STAGES:
        alone = step_b(method, a)
        a, b = step_a(method, a), step_b(method, b)
        stages.append(StageError(stage, a.shape, _error(a, alone), _error(a, b)))
        if stage == "compressor":
            lats, toks_a, toks_b = a, step_a("lats_to_toks", a), step_b("lats_to_toks", b)
    differ = toks_a != toks_b
    unsure = (np.abs(lats) < NEAR_ZERO).any(axis=-1)
    return Report(tuple(stages), toks_a.size, int(differ.sum()), int((differ & unsure).sum()))


def _error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(a).max()) if a.shape == b.shape else float("inf")


def ours(name: str) -> tuple[CodecConfig, Step]:
    model, variables = load_pretrained(name)
    apply = jax.jit(lambda variables, x, method: model.apply(variables, x, method=method), static_argnums=2)
    return model.config, lambda method, x: np.asarray(apply(variables, x, method))


def original(name: str) -> tuple[CodecConfig, Step]:
    """The PyTorch original, from the same checkpoint.

    Raises:
        CheckpointError: torch or the package `focalcodec` is not installed.
    """
    try:
        import torch
        from focalcodec import FocalCodec  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise CheckpointError("--live needs the PyTorch original: install torch and the package focalcodec") from error
    folder = checkpoint_folder(name)
    with tempfile.TemporaryDirectory() as directory:  # it looks for weights of the same stem as the configuration
        config, weights = Path(directory, "model.json"), Path(directory, "model.safetensors")
        config.symlink_to((folder / "config.json").resolve())
        weights.symlink_to(find_weights(folder).resolve())
        try:
            model = FocalCodec.from_pretrained(str(config)).eval()
        except (TypeError, RuntimeError, KeyError) as error:
            raise FocalCodecError(f"the PyTorch original cannot load {folder}: {error}") from error

    def step(method: str, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return getattr(model, method)(torch.from_numpy(np.array(x))).numpy()

    return CodecConfig.from_json(folder / "config.json"), step
