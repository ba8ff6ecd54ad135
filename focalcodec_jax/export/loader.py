"""Loader of an exported FocalCodec. Each export contains a copy of this file, as `load.py`.

It requires only `pip install jax flatbuffers`. jax uses flatbuffers to read exported programs.

    from load import load

    codec = load()  # the folder of this file
    toks, lengths = codec.encode(sig, lengths)
    sig, lengths = codec.decode(toks, lengths)

Programs are compiled once for each batch size and padded length. Inputs are padded to one of a few lengths, so that a
later call with a similar length needs no compilation. Padding changes no result.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from numpy.typing import ArrayLike

FORMAT = "focalcodec-jax stablehlo 1"
ABOUT = "serving.json"


class ServingError(ValueError):
    """The export is incomplete, this machine cannot run it, or an input is invalid."""


def load(folder: str | Path = Path(__file__).parent, device: str | None = None) -> "ExportedCodec":
    """Load an exported codec.

    Args:
        folder: folder of the export. The default is the folder of this file.
        device: `cpu`, `gpu` or `tpu`. The default is JAX's default backend. One device is used.

    Raises:
        ServingError: A file is missing, truncated or from another export, or the installed jax cannot read it. The
            error is also raised if the export does not support the device.
    """
    folder = Path(folder)
    about = _about(folder)
    for name, digest in about["sha256"].items():
        if not (folder / name).is_file():
            raise ServingError(f"{folder} lacks {name}; copy the whole folder again, or repeat the export")
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ServingError(f"{folder / name} is truncated or from another export; copy it again")
    try:
        chosen = jax.local_devices(backend=device)[0]
    except RuntimeError as error:
        raise ServingError(f"this machine has no {device}, or jax is installed without support for it") from error
    platform = {"gpu": "cuda"}.get(chosen.platform, chosen.platform)
    if platform not in about["platforms"]:
        raise ServingError(f"{folder} was exported for {', '.join(about['platforms'])}; this machine has {platform}")
    return ExportedCodec(folder, about, chosen)


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    if not path.is_file():
        raise ServingError(f"{folder} is not an exported codec, because it contains no {ABOUT}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ServingError(f"{path} is not JSON: {error}; copy it again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ServingError(f"{path} does not have the format {FORMAT!r}; use the load.py in the same folder")
    return about


class ExportedCodec:
    """An exported codec on one device.

    Attributes:
        about: content of `serving.json`.
        sample_rate_hz, sample_rate_out_hz: sample rates of input audio and of decoded audio.
        token_rate_hz: tokens per second of audio.
        codebook_size: number of codes.
    """

    def __init__(self, folder: Path, about: dict[str, Any], device: Any):
        self.about = about
        self.sample_rate_hz: int = about["sample_rate_hz"]
        self.sample_rate_out_hz: int = about["sample_rate_out_hz"]
        self.token_rate_hz: float = about["token_rate_hz"]
        self.codebook_size: int = about["codebook_size"]
        self._encode = _Program(folder, "encode", about, device)
        self._decode = _Program(folder, "decode", about, device)

    def encode(self, sig: ArrayLike, lengths: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Encode a batch of recordings to tokens.

        Args:
            sig: (batch, samples) floats in [−1, 1] at `sample_rate_hz`. Samples past an item's length are ignored.
            lengths: (batch,) number of samples of each item. The default is all samples.

        Returns:
            toks: (batch, tokens) int32, zero past each item's length.
            lengths: (batch,) int32, number of tokens of each item.

        Raises:
            ServingError: `sig` or `lengths` has the wrong shape or type, `sig` is empty, or a sample is not finite.
        """
        sig, lengths = _batch(sig, lengths, "sig", "samples", np.floating)
        real = np.arange(sig.shape[1]) < lengths[:, None]
        if not np.isfinite(sig[real]).all():
            raise ServingError("sig contains NaN or infinity; samples are numbers in [-1, 1]")
        return self._encode(np.where(real, sig, 0).astype(np.float32), lengths)

    def decode(self, toks: ArrayLike, lengths: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Decode a batch of token sequences to audio.

        Args:
            toks: (batch, tokens) integers. Values past an item's length are ignored.
            lengths: (batch,) number of tokens of each item. The default is all tokens.

        Returns:
            sig: (batch, samples) float32 at `sample_rate_out_hz`, zero past each item's length.
            lengths: (batch,) int32, number of samples of each item.

        Raises:
            ServingError: `toks` or `lengths` has the wrong shape or type, `toks` is empty, or a token is outside the
                codebook.
        """
        toks, lengths = _batch(toks, lengths, "toks", "tokens", np.integer)
        toks = np.where(np.arange(toks.shape[1]) < lengths[:, None], toks, 0)
        outside = toks[(toks < 0) | (toks >= self.codebook_size)]
        if outside.size:
            raise ServingError(f"toks contains {outside[0]}; tokens of this codec are 0 to {self.codebook_size - 1}")
        return self._decode(toks.astype(np.int32), lengths)


class _Program:
    """One program with its parameters on the device. It is compiled once per shape."""

    def __init__(self, folder: Path, name: str, about: dict[str, Any], device: Any):
        self._step, self._extra = about[name]["step"], about[name]["extra"]
        try:
            exported = export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
        except Exception as error:  # jax documents no error class for unreadable programs
            raise ServingError(
                f"{folder} was written by jax {about['jax']}; jax {jax.__version__} cannot read it: {error}"
            ) from error
        with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
            self._params = jax.device_put(dict(archive), device)
        self._device = device
        self._call = jax.jit(exported.call)

    def __call__(self, x: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        length = padded_length(x.shape[1], self._step, self._extra)
        padded = np.pad(x, ((0, 0), (0, length - x.shape[1])))
        result, sizes = jax.device_get(self._call(self._params, *jax.device_put((padded, lengths), self._device)))
        return result[:, : sizes.max()], sizes


def padded_length(length: int, step: int, extra: int) -> int:
    """Length to pad to, of the form step · n + extra. The values of n start at 16 and grow by a quarter."""
    n = 16
    while step * n + extra < length:
        n = -(-n * 5 // 4)
    return step * n + extra


def _batch(x: ArrayLike, lengths: ArrayLike | None, name: str, unit: str, kind: Any) -> tuple[np.ndarray, np.ndarray]:
    """Check the shape and type of an input, and fill in its lengths."""
    x = np.asarray(x)
    if x.ndim != 2 or x.size == 0:
        raise ServingError(f"{name} has shape {x.shape}; give (batch, {unit}), both at least 1")
    if not np.issubdtype(x.dtype, kind):
        raise ServingError(f"{name} contains {x.dtype} values; give {kind.__name__} values")
    sizes = np.full(len(x), x.shape[1]) if lengths is None else np.asarray(lengths)
    if sizes.shape != x.shape[:1] or not np.issubdtype(sizes.dtype, np.integer):
        raise ServingError(f"lengths is {sizes.dtype} {sizes.shape}; give one integer for each of the {len(x)} items")
    if sizes.min() < 1 or sizes.max() > x.shape[1]:
        raise ServingError(
            f"lengths are {sizes.min()} to {sizes.max()} {unit}; they must be between 1 and {x.shape[1]}"
        )
    return x, sizes.astype(np.int32)
