"""`focalcodec-jax export-stablehlo`: a codec as two StableHLO programs that any machine with jax runs.

An export is a folder: `encode.stablehlo` and `decode.stablehlo` (serialized `jax.export.Exported`, one program each for
all batch sizes, lengths and platforms), `encode.npz` and `decode.npz` with their parameters by path, `serving.json`
with what a caller must know, and `load.py`, which needs jax and flatbuffers (with which jax reads programs) alone.

    encode: params, sig (batch, samples) float32, lengths (batch,) → toks (batch, tokens), lengths in tokens
    decode: params, toks (batch, tokens) int32, lengths (batch,) → sig (batch, samples) float32, lengths in samples

The programs take `step` · n + `extra` samples or tokens, for any n: what makes every shape inside them provably whole.
`load.py` pads to that, which changes no result.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from focalcodec_jax.config import SAMPLE_RATE_HZ, CodecConfig
from focalcodec_jax.errors import ConfigError, FocalCodecError
from focalcodec_jax.export import loader
from focalcodec_jax.files import written_whole
from focalcodec_jax.nn import lengths as count
from focalcodec_jax.nn.codec import FocalCodec
from focalcodec_jax.nn.layers import frame_mask
from focalcodec_jax.pretrained import Variables
from focalcodec_jax.version import __version__

PLATFORMS = ("cpu", "cuda", "tpu")
PARTS = {"encode": ("encoder", "compressor"), "decode": ("decompressor", "decoder")}
"""The parts of the codec that each program needs."""
FILES = (
    *(f"{name}.{kind}" for name in PARTS for kind in ("stablehlo", "npz")),
    "load.py",
    loader.ABOUT,
)


def export_stablehlo(
    model: FocalCodec,
    variables: Variables,
    folder: str | Path,
    platforms: Sequence[str] = PLATFORMS,
    *,
    checkpoint: str | None = None,
) -> None:
    """Write a codec as StableHLO programs, their parameters and a loader.

    Args:
        folder: a new or an empty one, or an earlier export, which is replaced.
        platforms: what the programs are to run on: some of cpu, cuda, tpu. None of them need be at hand.
        checkpoint: the codec's name, for `serving.json`.

    Raises:
        ConfigError: there is no such platform.
        FocalCodecError: the folder holds something else.
        OSError: the folder cannot be written; nothing half-written is left.
    """
    folder = Path(folder)
    check_platforms(platforms)
    check_folder(folder)
    params: dict[str, Any] = {name: parameters(variables, name) for name in PARTS}
    programs = {name: program(model, name, params[name], platforms) for name in PARTS}
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # the last to be entered takes its name first: serving.json comes when all is there
        parts = {name: stack.enter_context(written_whole(folder / name)) for name in reversed(FILES)}
        for name in PARTS:
            parts[f"{name}.stablehlo"].write_bytes(programs[name].serialize())
            np.savez(parts[f"{name}.npz"], **params[name])
        parts["load.py"].write_bytes(Path(loader.__file__).read_bytes())
        about = describe(model.config, platforms, checkpoint)
        about["sha256"] = {name: _digest(parts[name]) for name in FILES if not name.endswith((".py", ".json"))}
        parts[loader.ABOUT].write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def check_platforms(platforms: Sequence[str]) -> None:
    """Refuse no platform at all, or an unknown one.

    Raises:
        ConfigError: names it, and those there are.
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        wrong = f"no platform is called {unknown[0]!r}" if unknown else "no platform is given"
        raise ConfigError(f"{wrong}; give some of {','.join(PLATFORMS)}")


def check_folder(folder: Path) -> None:
    """Refuse a folder in which an export would lie among other files.

    Raises:
        FocalCodecError: names one of them.
    """
    if folder.exists() and not folder.is_dir():
        raise FocalCodecError(f"{folder} is a file; give a new folder")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.is_dir() else []
    if others:
        raise FocalCodecError(f"{folder} holds something else ({others[0]}); give a new or an empty folder")


def parameters(variables: Variables, name: str) -> dict[str, np.ndarray]:
    """What `encode` or `decode` needs of a codec's parameters, by path."""
    parts = {part: variables["params"][part] for part in PARTS[name]}
    return {path: np.asarray(array) for path, array in flatten_dict(parts, sep="/").items()}


def program(
    model: FocalCodec, name: str, params: Mapping[str, np.ndarray], platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """`encode` or `decode` of any batch size and length, for these platforms."""

    def encode(params, sig, lengths):
        toks: Any = model.apply({"params": unflatten_dict(params, sep="/")}, sig, lengths, method="sig_to_toks")
        tokens = count.samples_to_tokens(model.config, lengths)
        return jnp.where(frame_mask(tokens, toks.shape[1]), toks, 0), tokens

    def decode(params, toks, lengths):
        sig = model.apply({"params": unflatten_dict(params, sep="/")}, toks, lengths, method="toks_to_sig")
        return sig, count.tokens_to_samples(model.config, lengths)

    function, dtype = {"encode": (encode, np.float32), "decode": (decode, np.int32)}[name]
    step, extra = sizes(model.config, name)
    # Always true of whole numbers, and told because the relative positions' square of n·(2n−1) values needs it.
    batch, length = export.symbolic_shape(f"batch, {step}*n + {extra}", constraints=("n*n >= n",))
    arguments = (jax.ShapeDtypeStruct((batch, length), dtype), jax.ShapeDtypeStruct((batch,), np.int32))
    shapes = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in params.items()}
    with _file_names_only():
        return export.export(jax.jit(function), platforms=tuple(platforms))(shapes, *arguments)


@contextmanager
def _file_names_only() -> Iterator[None]:
    """A program says which line made each operation; not where that file lies on this machine."""
    option = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, option)
    jax.config.update(option, ".*/")
    try:
        yield
    finally:
        jax.config.update(option, before)


def sizes(config: CodecConfig, name: str) -> tuple[int, int]:
    """The step and the extra of a program's lengths: samples that make whole tokens, or tokens that make whole chunks.

    An offline extractor needs extra samples for its last frame: its windows reach past their strides.
    """
    if name == "encode":
        step, extra, encoder = math.prod(config.compressor.factors), 0, config.encoder
        for kernel_size, stride in reversed(list(zip(encoder.kernel_sizes, encoder.strides, strict=True))):
            step, extra = step * stride, extra * stride + (0 if encoder.causal else kernel_size - stride)
        return step, extra
    refined = config.decompressor.causal and config.decompressor.lookahead_size > 0
    chunk = 1 + config.decompressor.lookahead_size if refined else 1
    return chunk // math.gcd(chunk, math.prod(config.decompressor.factors)), 0


def describe(config: CodecConfig, platforms: Sequence[str], checkpoint: str | None) -> dict[str, Any]:
    """What `serving.json` says, but for the files' digests."""
    shapes = {
        "encode": ("sig float32 (batch, samples)", "toks int32 (batch, tokens)"),
        "decode": ("toks int32 (batch, tokens)", "sig float32 (batch, samples)"),
    }
    about: dict[str, Any] = {
        "format": loader.FORMAT,
        "checkpoint": checkpoint,
        "producer": f"focalcodec_jax {__version__}",
        "jax": jax.__version__,
        "platforms": list(platforms),
        "compute_dtype": config.dtype,
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "sample_rate_out_hz": config.sample_rate_out_hz,
        "token_rate_hz": config.token_rate_hz,
        "codebook_size": config.quantizer.codebook_size,
        "causal": config.causal,
    }
    for name, (given, made) in shapes.items():
        step, extra = sizes(config, name)
        inputs, outputs = ["params", given, "lengths int32 (batch,)"], [made, "lengths int32 (batch,)"]
        about[name] = {"inputs": inputs, "outputs": outputs, "step": step, "extra": extra}
    return about


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
