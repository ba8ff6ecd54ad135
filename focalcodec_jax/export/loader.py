"""Runs an exported FocalCodec. `export-stablehlo` puts a copy beside what it writes, as `load.py`. It needs nothing but
`pip install jax flatbuffers`: jax reads exported programs with the latter.

    from load import load

    codec = load()  # the folder that this file lies in
    toks, lengths = codec.encode(sig, lengths)
    sig, lengths = codec.decode(toks, lengths)

A call is compiled once per batch size and padded length; lengths are padded to one of a few, so that a second call of
similar length compiles nothing. Padding changes no result.
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
    """The folder is not a whole export, this machine cannot run it, or an input is not what its programs take."""


def load(folder: str | Path = Path(__file__).parent, device: str | None = None) -> "Codec":
    """Load an exported codec.

    Args:
        folder: what `export-stablehlo` wrote.
        device: `cpu`, `gpu` or `tpu`; by default the best this machine has, of which one is used.

    Raises:
        ServingError: a file is missing, truncated or of another export; jax here cannot read it; or it was not
            exported for this device.
    """
    folder = Path(folder)
    about = _about(folder)
    for name, digest in about["sha256"].items():
        if not (folder / name).is_file():
            raise ServingError(f"{folder} lacks {name}; copy the whole folder, or export again")
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ServingError(f"{folder / name} is truncated or of another export; copy it again")
    try:
        chosen = jax.local_devices(backend=device)[0]
    except RuntimeError as error:
        raise ServingError(f"no {device} on this machine, or jax is installed without it") from error
    platform = {"gpu": "cuda"}.get(chosen.platform, chosen.platform)
    if platform not in about["platforms"]:
        raise ServingError(f"{folder} was exported for {', '.join(about['platforms'])}; this machine has {platform}")
    return Codec(folder, about, chosen)


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    if not path.is_file():
        raise ServingError(f"{folder} is not an exported codec: it holds no {ABOUT}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ServingError(f"{path} is not JSON: {error}; copy it again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ServingError(f"{path} is not of this format ({FORMAT!r}); use the load.py that lies beside it")
    return about


class Codec:
    """An exported codec on one device.

    Attributes:
        about: what `serving.json` says.
        sample_rate_hz, sample_rate_out_hz: of audio to encode, and of decoded audio.
        token_rate_hz, codebook_size: tokens a second, and how many there are to choose from.
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
        """Tokens of a batch of recordings.

        Args:
            sig: (batch, samples) floats in [−1, 1], at `sample_rate_hz`; what lies past an item's end is not heard.
            lengths: (batch,) samples of each item; by default all of them.

        Returns:
            toks (batch, tokens) int32, zero past each item's end, and lengths (batch,) int32 in tokens.

        Raises:
            ServingError: wrong rank, type or lengths, empty, or a sample is not finite.
        """
        sig, lengths = _batch(sig, lengths, "sig", "samples", np.floating)
        real = np.arange(sig.shape[1]) < lengths[:, None]
        if not np.isfinite(sig[real]).all():
            raise ServingError("sig holds NaN or infinity; samples are numbers in [-1, 1]")
        return self._encode(np.where(real, sig, 0).astype(np.float32), lengths)

    def decode(self, toks: ArrayLike, lengths: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Audio of a batch of token sequences.

        Args:
            toks: (batch, tokens) integers; past an item's end they may be anything.
            lengths: (batch,) tokens of each item; by default all of them.

        Returns:
            sig (batch, samples) float32 at `sample_rate_out_hz`, silent past each item's end, and lengths (batch,)
            int32 in samples.

        Raises:
            ServingError: wrong rank, type or lengths, empty, or a token outside the codebook.
        """
        toks, lengths = _batch(toks, lengths, "toks", "tokens", np.integer)
        toks = np.where(np.arange(toks.shape[1]) < lengths[:, None], toks, 0)
        outside = toks[(toks < 0) | (toks >= self.codebook_size)]
        if outside.size:
            raise ServingError(f"toks holds {outside[0]}; this codebook is 0 to {self.codebook_size - 1}")
        return self._decode(toks.astype(np.int32), lengths)


class _Program:
    """One program, its parameters on the device, compiled once per shape."""

    def __init__(self, folder: Path, name: str, about: dict[str, Any], device: Any):
        self._step, self._extra = about[name]["step"], about[name]["extra"]
        try:
            exported = export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
        except Exception as error:  # jax promises no one class
            raise ServingError(
                f"{folder} was written by jax {about['jax']}, which jax {jax.__version__} here cannot read: {error}"
            ) from error
        with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
            self._params = jax.device_put(dict(archive), device)
        self._device = device
        self._call = jax.jit(exported.call)

    def __call__(self, x: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.pad(x, ((0, 0), (0, self._padded(x.shape[1]) - x.shape[1])))
        result, sizes = jax.device_get(self._call(self._params, *jax.device_put((padded, lengths), self._device)))
        return result[:, : sizes.max()], sizes

    def _padded(self, length: int) -> int:
        """One of a series of lengths, growing by a quarter, that the program takes: step · n + extra."""
        n = 16
        while self._step * n + self._extra < length:
            n = -(-n * 5 // 4)
        return self._step * n + self._extra


def _batch(x: ArrayLike, lengths: ArrayLike | None, name: str, unit: str, kind: Any) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x)
    if x.ndim != 2 or x.size == 0:
        raise ServingError(f"{name} has shape {x.shape}; give (batch, {unit}), at least one of each")
    if not np.issubdtype(x.dtype, kind):
        raise ServingError(f"{name} holds {x.dtype} values; they are {kind.__name__}")
    sizes = np.full(len(x), x.shape[1]) if lengths is None else np.asarray(lengths)
    if sizes.shape != x.shape[:1] or not np.issubdtype(sizes.dtype, np.integer):
        raise ServingError(f"lengths is {sizes.dtype} {sizes.shape}; give one integer for each of the {len(x)} items")
    if sizes.min() < 1 or sizes.max() > x.shape[1]:
        raise ServingError(f"lengths are {sizes.min()} to {sizes.max()} {unit}; {name} has 1 to {x.shape[1]}")
    return x, sizes.astype(np.int32)
