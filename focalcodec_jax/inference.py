"""`Codec` encodes lists of recordings to tokens, and decodes tokens to audio, on all local devices.

Inputs are padded to one of a few lengths and processed in batches. XLA therefore compiles only a few programs, and a
later call with similar lengths needs no compilation. Padding changes no result.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from focalcodec_jax.config import SAMPLE_RATE_HZ, DType
from focalcodec_jax.errors import AudioError, FocalCodecError, TokenError
from focalcodec_jax.nn import lengths as count, voice
from focalcodec_jax.nn.codec import FocalCodec
from focalcodec_jax.pretrained import DEMO, Variables, load_pretrained
from focalcodec_jax.recordings import audio

Signal = np.ndarray
BATCH_SECONDS = {"cpu": 10.0, "gpu": 120.0, "tpu": 120.0}
"""Maximum audio per device and batch in seconds, including padding. A longer recording is a batch of its own.

On a CPU, large batches exceed the cache. They are slower than single recordings and need more memory.
"""


class Codec:
    """A codec with its weights on all local devices.

        codec = Codec.from_pretrained("lucadellalib/focalcodec_50hz")
        toks = codec.encode(sig, sample_rate=16000)
        sigs = codec.decode(toks)

    Attributes:
        model, variables: the Flax module and its variables.
        config: the configuration of the model.
        sample_rate_hz: sample rate of decoded audio.
        samples, tokens, frames: the time axes of the arrays of the model.
        num_devices, batch_sharding: number of local devices in use, and the sharding of a batch over them.
        batch_seconds: maximum audio per device and batch in seconds.

    Args:
        model, variables: the Flax module and its variables, as `load_pretrained` returns them.
        devices: local devices to use. The default is all devices of JAX's default backend.
    """

    def __init__(self, model: FocalCodec, variables: Variables, devices: Sequence[Any] | None = None):
        self.model = model
        self.config = model.config
        self.sample_rate_hz = model.config.sample_rate_out_hz
        devices = list(devices or jax.local_devices())
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        self.samples = Axis(model.config.encoder.samples_per_frame, SAMPLE_RATE_HZ)
        self.tokens = Axis(1, model.config.token_rate_hz)
        self.frames = Axis(1, model.config.frame_rate_hz)
        self.num_devices = len(devices)
        self.batch_seconds = default_batch_seconds(devices)
        self.batch_sharding = NamedSharding(mesh, PartitionSpec("data"))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self.variables = jax.device_put(variables, self._replicated)
        self._encode = self.compiled("sig_to_toks")
        self._rebuild = self.compiled("toks_to_qfeats")
        self._decode = self.compiled("toks_to_sig")
        self._vocode = self.compiled("feats_to_sig")
        self._nearest = jax.jit(voice.nearest, static_argnames="k")

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = DEMO,
        *,
        revision: str | None = None,
        dtype: DType | None = None,
        device: str | None = None,
    ) -> "Codec":
        """Load a codec.

        Args:
            name_or_folder, revision, dtype: the checkpoint, as for `load_pretrained`.
            device: `cpu`, `gpu` or `tpu`. All local devices of this kind are used. The default is JAX's default
                backend.

        Raises:
            CheckpointError, ConfigError: As for `load_pretrained`.
            FocalCodecError: This machine has no such device.
        """
        devices = local_devices(device)
        with jax.default_device(devices[0]):
            model, variables = load_pretrained(name_or_folder, revision=revision, dtype=dtype)
        return cls(model, variables, devices)

    def encode(self, sigs: Signal | Sequence[Signal], sample_rate: int) -> list[np.ndarray]:
        """Encode recordings to tokens.

        Args:
            sigs: one (samples,) array of floats in [−1, 1], or a list of such arrays of any lengths.
            sample_rate: sample rate of the recordings in Hz. They are resampled to 16 kHz if necessary.

        Returns:
            One (tokens,) int32 array per recording.

        Raises:
            AudioError: A recording is empty, multichannel, not floating point, or not finite.
        """
        sigs = [self._prepared(sig, sample_rate, f"recording {index}") for index, sig in enumerate(_listed(sigs))]
        tokens = self._run(self._encode, sigs, self.samples)
        return [toks[: count.samples_to_tokens(self.config, len(sig))] for toks, sig in zip(tokens, sigs, strict=True)]

    def decode(self, tokens: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
        """Decode token sequences to audio.

        Args:
            tokens: one (tokens,) integer array, or a list of such arrays.

        Returns:
            One (samples,) float32 array per sequence, at `sample_rate_hz`.

        Raises:
            TokenError: A sequence is empty, not of integers, or contains a token outside the codebook.
        """
        tokens = self._checked_tokens(tokens)
        sigs = self._run(self._decode, tokens, self.tokens)
        return [sig[: count.tokens_to_samples(self.config, len(toks))] for sig, toks in zip(sigs, tokens, strict=True)]

    def qfeats(self, tokens: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rebuild the features of token sequences.

        Args:
            tokens: as for `decode`.

        Returns:
            One (frames, dim) float array per sequence.

        Raises:
            TokenError: As for `decode`.
        """
        tokens = self._checked_tokens(tokens)
        feats = self._run(self._rebuild, tokens, self.tokens)
        return [
            item[: count.tokens_to_frames(self.config, len(toks))] for item, toks in zip(feats, tokens, strict=True)
        ]

    def convert_voice(
        self, sigs: Signal | Sequence[Signal], target: Sequence[Signal], sample_rate: int, *, k: int = 4
    ) -> list[np.ndarray]:
        """Convert recordings to the voice of a target speaker.

        Each frame is replaced by the mean of its nearest neighbours among the frames of the target recordings.

        Args:
            sigs: one (samples,) recording, or a list of such arrays.
            target: recordings of the target speaker. Several minutes give the best results.
            sample_rate: sample rate of all recordings in Hz.
            k: number of neighbours to average.

        Returns:
            One (samples,) float32 array per recording, at `sample_rate_hz`.

        Raises:
            AudioError: The target recordings have fewer than `k` frames, or as for `encode`.
        """
        matching_set = np.concatenate(self.qfeats(self.encode(target, sample_rate)))
        if len(matching_set) < k:
            raise AudioError(f"the target recordings have {len(matching_set)} frames, fewer than k = {k}; add speech")
        points = len(matching_set)
        padded = np.pad(matching_set, ((0, self.frames.bucket(points) - points), (0, 0)))
        padded, real = jax.device_put((padded, np.arange(len(padded)) < points), self._replicated)

        def convert(variables, qfeats, frames):
            return self._vocode(variables, self._nearest(qfeats, padded, real, k=k), frames)

        qfeats = self.qfeats(self.encode(sigs, sample_rate))
        converted = self._run(convert, qfeats, self.frames)
        return [sig[: count.frames_to_samples(self.config, len(q))] for sig, q in zip(converted, qfeats, strict=True)]

    def compiled(self, method: str) -> Any:
        """Create a jitted function of (variables, x, lengths) that applies a method of the model."""

        def step(variables: Variables, x: jax.Array, lengths: jax.Array) -> Any:
            return self.model.apply(variables, x, lengths, method=method)

        return jax.jit(step)

    def _prepared(self, sig: Signal, sample_rate: int, name: str) -> np.ndarray:
        return audio.checked(audio.resample(audio.checked(sig, name), sample_rate, SAMPLE_RATE_HZ), name)

    def _checked_tokens(self, tokens: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
        size = self.config.quantizer.codebook_size
        return [check_tokens(toks, size, f"token sequence {index}") for index, toks in enumerate(_listed(tokens))]

    def _run(self, step: Callable, items: list[np.ndarray], axis: "Axis") -> list[np.ndarray]:
        """Apply a compiled step to items of any lengths. The results have the order of the items and are padded."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            by_length[axis.bucket(len(item))].append(index)
        results: list[Any] = [None] * len(items)
        for length, indices in by_length.items():
            most = _power_of_two_below(max(1, int(self.batch_seconds * axis.rate_hz / length))) * self.num_devices
            for first in range(0, len(indices), most):
                members = indices[first : first + most]
                batch, lengths = self._batch([items[index] for index in members], length)
                output = np.asarray(step(self.variables, *jax.device_put((batch, lengths), self.batch_sharding)))
                for index, row in zip(members, output, strict=False):  # the last rows may be padding
                    results[index] = row
        return results

    def _batch(self, items: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Stack items padded to `length`. The number of rows per device is rounded up to a power of two.

        Returns:
            The (rows, length, ...) batch, and the (rows,) lengths of the items.
        """
        per_device = -(-len(items) // self.num_devices)
        rows = self.num_devices * (1 << (per_device - 1).bit_length())
        batch = np.zeros((rows, length, *items[0].shape[1:]), items[0].dtype)
        for row, item in zip(batch, items, strict=False):
            row[: len(item)] = item
        return batch, np.array([len(item) for item in items] + [1] * (rows - len(items)), np.int32)


@dataclass(frozen=True)
class Axis:
    """A time axis of the model's arrays, in samples, frames or tokens."""

    quantum: int
    """Padded lengths are multiples of this number."""
    rate_hz: float
    """Steps of the axis per second."""

    def bucket(self, length: int) -> int:
        """Length to pad to, as in `bucket_length`."""
        return count.bucket_length(length, self.quantum)


def _power_of_two_below(n: int) -> int:
    """Largest power of two that is at most `n`."""
    return 1 << (n.bit_length() - 1)


def check_tokens(tokens: np.ndarray, codebook_size: int, name: str = "the token sequence") -> np.ndarray:
    """Check a token sequence.

    Args:
        tokens: (tokens,) integers.
        codebook_size: number of codes.
        name: name of the sequence, for messages.

    Returns:
        The tokens as int32.

    Raises:
        TokenError: The sequence is empty, not of integers or not one-dimensional, or has a token outside the codebook.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.size == 0:
        raise TokenError(f"{name} has shape {tokens.shape}; give at least one token, an array of shape (tokens,)")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise TokenError(f"{name} contains {tokens.dtype} values; tokens are integers")
    outside = np.flatnonzero((tokens < 0) | (tokens >= codebook_size))
    if outside.size:
        first = outside[0]
        raise TokenError(
            f"{name} has token {tokens[first]} at position {first}; tokens of this codec are 0 to {codebook_size - 1}"
        )
    return tokens.astype(np.int32)


def default_batch_seconds(devices: Sequence[Any]) -> float:
    """Default of `Codec.batch_seconds` for these devices."""
    return BATCH_SECONDS.get(devices[0].platform, 120.0)


def local_devices(kind: str | None):
    """List the local devices of a kind.

    Args:
        kind: `cpu`, `gpu` or `tpu`. None selects JAX's default backend.

    Raises:
        FocalCodecError: This machine has no device of that kind.
    """
    try:
        return jax.local_devices(backend=kind)
    except RuntimeError as error:
        available = ", ".join(sorted({device.platform for device in jax.local_devices()}))
        raise FocalCodecError(
            f"this machine has no {kind}, or JAX is installed without support for it; available: {available}",
            parameter="device",
        ) from error


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX's compilation cache is already configured."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "focalcodec_jax" / "compiled"))


def _listed(items: Any) -> list[Any]:
    """Convert one array or a sequence of arrays to a list."""
    return [items] if isinstance(items, np.ndarray | jax.Array) and items.ndim == 1 else list(items)
