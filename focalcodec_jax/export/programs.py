"""Export of a codec as two StableHLO programs, which run on any machine with jax.

An export is a folder with these files:
    encode.stablehlo, decode.stablehlo: serialized `jax.export.Exported`, for all batch sizes, lengths and platforms.
    encode.npz, decode.npz: the parameters of each program, by path.
    serving.json: a description of the codec and of the programs.
    load.py: a loader, which needs only jax and flatbuffers.

The programs have these signatures:
    encode: params, sig (batch, samples) float32, lengths (batch,) → toks (batch, tokens), lengths in tokens
    decode: params, toks (batch, tokens) int32, lengths (batch,) → sig (batch, samples) float32, lengths in samples

The programs accept `step` · n + `extra` samples or tokens for any n. With this form, JAX can prove that all symbolic
shapes inside the programs are integers. `load.py` pads its input accordingly, which changes no result.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from focalcodec_jax.config import SAMPLE_RATE_HZ, CodecConfig, DType
from focalcodec_jax.errors import ConfigError, FocalCodecError
from focalcodec_jax.export import loader
from focalcodec_jax.files import written_whole
from focalcodec_jax.nn import lengths as count
from focalcodec_jax.nn.codec import FocalCodec
from focalcodec_jax.nn.layers import frame_mask
from focalcodec_jax.pretrained import Variables, load_pretrained
from focalcodec_jax.version import __version__

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM_PARTS = {"encode": ("encoder", "compressor"), "decode": ("decompressor", "decoder")}
"""The parts of the codec that each program needs."""
FILES = (
    *(f"{name}.{kind}" for name in PROGRAM_PARTS for kind in ("stablehlo", "npz")),
    "load.py",
    loader.ABOUT,
)


@dataclass(frozen=True)
class ExportReport:
    """An export that was written.

    Attributes:
        folder: folder of the export.
        checkpoint: name of the codec, if it has one.
        platforms: platforms that the programs run on.
    """

    folder: Path
    checkpoint: str | None
    platforms: tuple[str, ...]


def stablehlo(
    checkpoint: str | Path, output: str | Path, platforms: Sequence[str] = PLATFORMS, *, dtype: str = "float32"
) -> ExportReport:
    """Export a checkpoint as StableHLO programs, with their parameters and a loader.

    Args:
        checkpoint: name or folder, as for `load_pretrained`.
        output: folder to write to. It must be new or empty, or contain an earlier export, which is replaced.
        platforms: platforms that the programs can run on, of cpu, cuda and tpu. This machine need not have them.
        dtype: compute dtype of the programs, float32 or bfloat16.

    Raises:
        ConfigError: A platform or the dtype is unknown.
        CheckpointError: As for `load_pretrained`.
        FocalCodecError: The folder contains other files.
        OSError: The folder cannot be written. No partial file is left.
    """
    check_platforms(platforms)
    check_folder(Path(output))
    if dtype not in get_args(DType):
        raise ConfigError(f"no codec computes in {dtype!r}; give {' or '.join(get_args(DType))}", parameter="dtype")
    model, variables = load_pretrained(checkpoint, dtype=cast(DType, dtype))
    return write_programs(model, variables, output, platforms, checkpoint=str(checkpoint))


def write_programs(
    model: FocalCodec,
    variables: Variables,
    output: str | Path,
    platforms: Sequence[str] = PLATFORMS,
    *,
    checkpoint: str | None = None,
) -> ExportReport:
    """Export a model and its variables in the same way as `stablehlo`.

    Args:
        model, variables: the Flax module and its variables.
        output, platforms: as for `stablehlo`.
        checkpoint: name of the codec, for `serving.json`.

    Raises:
        ConfigError, FocalCodecError, OSError: As for `stablehlo`.
    """
    folder = Path(output)
    check_platforms(platforms)
    check_folder(folder)
    params: dict[str, Any] = {name: parameters(variables, name) for name in PROGRAM_PARTS}
    programs = {name: program(model, name, params[name], platforms) for name in PROGRAM_PARTS}
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # files are renamed in reverse order, so that serving.json appears last
        parts = {name: stack.enter_context(written_whole(folder / name)) for name in reversed(FILES)}
        for name in PROGRAM_PARTS:
            parts[f"{name}.stablehlo"].write_bytes(programs[name].serialize())
            np.savez(parts[f"{name}.npz"], **params[name])
        parts["load.py"].write_bytes(Path(loader.__file__).read_bytes())
        about = describe(model.config, platforms, checkpoint)
        about["sha256"] = {name: _digest(parts[name]) for name in FILES if not name.endswith((".py", ".json"))}
        parts[loader.ABOUT].write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return ExportReport(folder, checkpoint, tuple(platforms))


def check_platforms(platforms: Sequence[str]) -> None:
    """Check that there is at least one platform, and that all are known.

    Raises:
        ConfigError: No platform is given, or one is unknown.
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        wrong = f"no platform is called {unknown[0]!r}" if unknown else "no platform is given"
        raise ConfigError(f"{wrong}; give one or more of {','.join(PLATFORMS)}", parameter="platforms")


def check_folder(folder: Path) -> None:
    """Check that a folder contains no files other than those of an earlier export.

    Raises:
        FocalCodecError: The folder contains another file, which the message names.
    """
    if folder.exists() and not folder.is_dir():
        raise FocalCodecError(f"{folder} is a file; give a new folder")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.is_dir() else []
    if others:
        raise FocalCodecError(f"{folder} contains other files ({others[0]}); give a new or an empty folder")


def parameters(variables: Variables, name: str) -> dict[str, np.ndarray]:
    """Parameters that `encode` or `decode` needs, by path."""
    parts = {part: variables["params"][part] for part in PROGRAM_PARTS[name]}
    return {path: np.asarray(array) for path, array in flatten_dict(parts, sep="/").items()}


def program(
    model: FocalCodec, name: str, params: Mapping[str, np.ndarray], platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """Export `encode` or `decode` for any batch size and length.

    Args:
        name: `encode` or `decode`.
        params: its parameters by path, from `parameters`.
        platforms: platforms that the program runs on.
    """

    def encode(params, sig, lengths):
        toks: Any = model.apply({"params": unflatten_dict(params, sep="/")}, sig, lengths, method="sig_to_toks")
        tokens = count.samples_to_tokens(model.config, lengths)
        return jnp.where(frame_mask(tokens, toks.shape[1]), toks, 0), tokens

    def decode(params, toks, lengths):
        sig = model.apply({"params": unflatten_dict(params, sep="/")}, toks, lengths, method="toks_to_sig")
        return sig, count.tokens_to_samples(model.config, lengths)

    function, dtype = {"encode": (encode, np.float32), "decode": (decode, np.int32)}[name]
    step, extra = sizes(model.config, name)
    # JAX cannot derive this constraint, but needs it for the n · (2n−1) values of the relative position bias.
    batch, length = export.symbolic_shape(f"batch, {step}*n + {extra}", constraints=("n*n >= n",))
    arguments = (jax.ShapeDtypeStruct((batch, length), dtype), jax.ShapeDtypeStruct((batch,), np.int32))
    shapes = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in params.items()}
    with _file_names_only():
        return export.export(jax.jit(function), platforms=tuple(platforms))(shapes, *arguments)


@contextmanager
def _file_names_only() -> Iterator[None]:
    """Remove the folders of this machine from the source locations that programs contain."""
    option = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, option)
    jax.config.update(option, ".*/")
    try:
        yield
    finally:
        jax.config.update(option, before)


def sizes(config: CodecConfig, name: str) -> tuple[int, int]:
    """The `step` and `extra` of the lengths of a program.

    The samples that `encode` receives give a whole number of tokens. The tokens that `decode` receives give a whole
    number of chunks. In offline models, the last frame needs extra samples, because kernels are longer than strides.
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
    """Content of `serving.json`, except for the digests of the files."""
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
