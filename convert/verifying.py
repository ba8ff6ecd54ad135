"""Numerical comparison of two checkpoints, stage by stage."""

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
"""Maximum error of a stage that counts as agreement."""
NEAR_ZERO = 1e-5
"""Rounding errors can change the sign of a latent value with a magnitude below this."""

Step = Callable[[str, np.ndarray], np.ndarray]
"""Runs a method of a codec on an array."""


@dataclass(frozen=True)
class StageParity:
    """Errors of one stage. An error is the largest absolute difference divided by the largest value of the reference.

    Attributes:
        stage: name of the stage.
        shape: shape of its output.
        given_reference_input: error when both codecs receive the input of the reference.
        end_to_end: error when each codec receives the output of its own previous stage.
    """

    stage: str
    shape: tuple[int, ...]
    given_reference_input: float
    end_to_end: float


@dataclass(frozen=True)
class ParityReport:
    """Comparison of two checkpoints.

    Attributes:
        stages: errors of each stage.
        tokens: number of tokens.
        differing: number of tokens that differ.
        near_zero: number of differing tokens with a latent value within `NEAR_ZERO` of zero.
    """

    stages: tuple[StageParity, ...]
    tokens: int
    differing: int
    near_zero: int

    @property
    def agree(self) -> bool:
        """Whether all stages agree within `TOLERANCE`, and all tokens except those with a latent value near zero."""
        close = all(stage.given_reference_input <= TOLERANCE for stage in self.stages if stage.stage != "quantizer")
        return close and self.differing == self.near_zero


def verify(first: str | Path, second: str | Path, sig: np.ndarray, *, live: bool = False) -> ParityReport:
    """Compare the results of two checkpoints for a recording.

    Args:
        first: the reference, a name or folder as for `load_pretrained`.
        second: the checkpoint to compare, a name or folder as for `load_pretrained`.
        sig: (samples,) audio at 16 kHz.
        live: run the second checkpoint in the PyTorch original (package `focalcodec`).

    Raises:
        CheckpointError: A checkpoint cannot be loaded, or the two architectures cannot be compared.
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


def compare(step_a: Step, step_b: Step, sig: np.ndarray) -> ParityReport:
    """Run every stage of both codecs, and compare the results.

    Args:
        step_a, step_b: the reference codec and the other codec.
        sig: (samples,) audio at 16 kHz.
    """
    a = b = sig[None]
    stages = []
    toks_a = toks_b = lats = np.empty(0)
    for stage, method in STAGES:
        given_reference = step_b(method, a)
        a, b = step_a(method, a), step_b(method, b)
        stages.append(StageParity(stage, a.shape, _error(a, given_reference), _error(a, b)))
        if stage == "compressor":
            lats, toks_a, toks_b = a, step_a("lats_to_toks", a), step_b("lats_to_toks", b)
    differ = toks_a != toks_b
    near_zero = (np.abs(lats) < NEAR_ZERO).any(axis=-1)
    return ParityReport(tuple(stages), toks_a.size, int(differ.sum()), int((differ & near_zero).sum()))


def _error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(a).max()) if a.shape == b.shape else float("inf")


def ours(name: str | Path) -> tuple[CodecConfig, Step]:
    """Load a checkpoint in this package.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
    """
    model, variables = load_pretrained(name)
    apply = jax.jit(lambda variables, x, method: model.apply(variables, x, method=method), static_argnums=2)
    return model.config, lambda method, x: np.asarray(apply(variables, x, method))


def original(name: str | Path) -> tuple[CodecConfig, Step]:
    """Load a checkpoint in the PyTorch original.

    Raises:
        CheckpointError: torch or the package `focalcodec` is not installed, or the checkpoint is missing.
        FocalCodecError: The original cannot load the checkpoint.
    """
    try:
        import torch
        from focalcodec import FocalCodec  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise CheckpointError(
            "comparing with the PyTorch original needs the packages torch and focalcodec", parameter="live"
        ) from error
    folder = checkpoint_folder(name)
    with tempfile.TemporaryDirectory() as directory:  # the original expects the two files to have the same stem
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
