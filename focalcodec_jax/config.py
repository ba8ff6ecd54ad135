"""Configuration of a codec: one frozen dataclass for each part, and `CodecConfig`, which combines them.

Fields have the names of the published `config.json`. Every configuration is validated when it is created.
Configurations are hashable, so they can be static arguments of `jax.jit`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

from focalcodec_jax.errors import ConfigError, explain

SAMPLE_RATE_HZ = 16_000
"""Input sample rate of all FocalCodec models."""

Dims = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
DType = Literal["float32", "bfloat16"]
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class EncoderConfig:
    """WavLM encoder: a convolutional feature extractor, and a transformer with gated relative position bias."""

    hidden_dims: Dims = (512,) * 7
    kernel_sizes: Dims = (10, 3, 3, 3, 3, 2, 2)
    strides: Dims = (5, 2, 2, 2, 2, 2, 2)
    num_layers: PositiveInt = 6
    dim: PositiveInt = 1024
    ffn_dim: PositiveInt = 4096
    num_heads: PositiveInt = 16
    num_buckets: PositiveInt = 320
    max_distance: PositiveInt = 800
    max_cached_steps: NonNegativeInt = 2048  # parity: a cache size of the original, which has no effect here
    dropout: NonNegativeFloat = 0.0
    conv_pos: PositiveInt = 128
    conv_pos_groups: PositiveInt = 16
    causal: bool = False
    window_size: PositiveInt = 512
    lookahead_size: NonNegativeInt = 3

    def __post_init__(self):
        if not len(self.hidden_dims) == len(self.kernel_sizes) == len(self.strides):
            raise ValueError("hidden_dims, kernel_sizes and strides must have one entry per layer")
        if self.dim % self.num_heads or self.dim % self.conv_pos_groups:
            raise ValueError(f"dim {self.dim} must be divisible by num_heads and by conv_pos_groups")

    @property
    def samples_per_frame(self) -> int:
        """Samples between the starts of consecutive frames: the product of the strides."""
        product = 1
        for stride in self.strides:
            product *= stride
        return product

    @property
    def chunk_frames(self) -> int:
        """Frames that a causal encoder processes at once."""
        return 1 + self.lookahead_size


@dataclass(frozen=True, config=_STRICT)
class FocalConfig:
    """Base of the compressor and the decompressor: a stack of focal modulation stages."""

    input_dim: PositiveInt = 1024
    output_dim: PositiveInt = 1024
    hidden_dims: Dims = (1024, 1024, 1024)
    focal_window: PositiveInt = 14
    focal_level: PositiveInt = 2
    focal_factor: NonNegativeInt = 4
    dropout: NonNegativeFloat = 0.0
    use_post_norm: bool = False
    use_layerscale: bool = False
    layerscale_init: float = 1e-4
    tanhscale_init: float = 0.5
    normalize_modulator: bool = False
    causal: bool = False
    window_size: PositiveInt = 512

    @property
    def factors(self) -> tuple[int, ...]:
        """Rescaling factor of each stage."""
        raise NotImplementedError

    def __post_init__(self):
        if len(self.factors) != len(self.hidden_dims):
            raise ValueError(f"{len(self.factors)} scale factors for {len(self.hidden_dims)} hidden_dims")


@dataclass(frozen=True, config=_STRICT)
class CompressorConfig(FocalConfig):
    """Compressor: features to latents."""

    output_dim: PositiveInt = 12
    downscale_factors: Dims = (1, 1, 1)

    @property
    def factors(self) -> tuple[int, ...]:
        return self.downscale_factors


@dataclass(frozen=True, config=_STRICT)
class DecompressorConfig(FocalConfig):
    """Decompressor: codes to features."""

    input_dim: PositiveInt = 12
    upscale_factors: Dims = (1, 1, 1)
    last_window_size: PositiveInt = 512
    lookahead_size: NonNegativeInt = 3

    @property
    def factors(self) -> tuple[int, ...]:
        return self.upscale_factors


@dataclass(frozen=True, config=_STRICT)
class QuantizerConfig:
    """Binary spherical quantization with 2^code_dim codes."""

    codebook_size: Annotated[int, Field(ge=2, le=2**30)] = 4096

    def __post_init__(self):
        if self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size must be a power of two, got {self.codebook_size}")

    @property
    def code_dim(self) -> int:
        """Number of bits per token."""
        return self.codebook_size.bit_length() - 1


@dataclass(frozen=True, config=_STRICT)
class BackboneConfig:
    """Base of both decoders: a ConvNeXt backbone."""

    input_dim: PositiveInt = 1024
    num_layers: PositiveInt = 8
    dim: PositiveInt = 512
    ffn_dim: PositiveInt = 1536
    kernel_size: PositiveInt = 7
    layerscale_init: float | None = None
    hop_length: PositiveInt = 320
    causal: bool = False


@dataclass(frozen=True, config=_STRICT)
class VocosConfig(BackboneConfig):
    """Decoder whose head is an inverse STFT."""

    n_fft: PositiveInt = 1024

    def __post_init__(self):
        if self.n_fft < self.hop_length or (self.n_fft - self.hop_length) % 2:
            raise ValueError(f"n_fft {self.n_fft} must be hop_length {self.hop_length} plus an even number")


@dataclass(frozen=True, config=_STRICT)
class WaveNeXtConfig(BackboneConfig):
    """Decoder whose head is a linear layer."""

    dim: PositiveInt = 1024
    ffn_dim: PositiveInt = 2048
    hop_length: PositiveInt = 480


PARTS: dict[str, dict[str, type]] = {
    "encoder": {"WavLM": EncoderConfig},
    "compressor": {"FocalEncoder": CompressorConfig},
    "quantizer": {"BinarySphericalQuantizer": QuantizerConfig},
    "decompressor": {"FocalDecoder": DecompressorConfig},
    "decoder": {"WaveNeXt": WaveNeXtConfig, "Vocos": VocosConfig},
}
"""For each part, its possible names in a published `config.json` and their classes. The first name is the default."""


@dataclass(frozen=True, config=_STRICT)
class CodecConfig:
    """A whole codec.

    Attributes:
        dtype: compute dtype. Parameters, quantizer, normalization, softmax and FFT are always float32.
    """

    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    compressor: CompressorConfig = Field(default_factory=CompressorConfig)
    quantizer: QuantizerConfig = Field(default_factory=QuantizerConfig)
    decompressor: DecompressorConfig = Field(default_factory=DecompressorConfig)
    decoder: WaveNeXtConfig | VocosConfig = Field(default_factory=WaveNeXtConfig)
    dtype: DType = "float32"

    def __post_init__(self):
        joints = {
            "encoder.dim = compressor.input_dim": (self.encoder.dim, self.compressor.input_dim),
            "compressor.output_dim = log2(codebook_size)": (self.compressor.output_dim, self.quantizer.code_dim),
            "log2(codebook_size) = decompressor.input_dim": (self.quantizer.code_dim, self.decompressor.input_dim),
            "decompressor.output_dim = decoder.input_dim": (self.decompressor.output_dim, self.decoder.input_dim),
        }
        wrong = [f"{name} does not hold: {a} and {b}" for name, (a, b) in joints.items() if a != b]
        if wrong:
            raise ValueError("the parts do not fit together: " + "; ".join(wrong))

    @property
    def sample_rate_out_hz(self) -> int:
        """Sample rate of decoded audio in Hz."""
        return SAMPLE_RATE_HZ * self.decoder.hop_length // self.encoder.samples_per_frame

    @property
    def frame_rate_hz(self) -> float:
        return SAMPLE_RATE_HZ / self.encoder.samples_per_frame

    @property
    def token_rate_hz(self) -> float:
        rate = self.frame_rate_hz
        for factor in self.compressor.factors:
            rate /= factor
        return rate

    @property
    def bitrate_bps(self) -> float:
        return self.token_rate_hz * self.quantizer.code_dim

    @property
    def causal(self) -> bool:
        return all(part.causal for part in (self.encoder, self.compressor, self.decompressor, self.decoder))

    @property
    def latency_seconds(self) -> float | None:
        """Algorithmic latency in seconds. None for offline codecs, which need the whole utterance."""
        return self.encoder.chunk_frames / self.frame_rate_hz if self.causal else None

    @classmethod
    def preset(cls, name: str) -> "CodecConfig":
        """Configuration of a published model. The prefix `lucadellalib/` of the name is optional.

        Raises:
            ConfigError: No preset has that name.
        """
        short = name.removeprefix("lucadellalib/")
        if short not in PRESETS:
            raise ConfigError(f"no preset is called {name!r}; presets are {', '.join(PRESETS)}")
        return PRESETS[short]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], *, dtype: DType = "float32") -> "CodecConfig":
        """Create a configuration from the ten keys of a published `config.json`, in the layout v0.0.2 or v0.0.1.

        Raises:
            ConfigError: The configuration is invalid. The message lists all problems.
        """
        known = {f"{part}_{kind}" for part in PARTS for kind in ("name", "config")}
        if config and not known & config.keys():
            kind = f"of a {config['model_type']!r} model" if "model_type" in config else "of another architecture"
            raise ConfigError(f"the configuration is {kind}, not of a FocalCodec (no key such as encoder_config)")
        problems = [f"unknown key {key!r}" for key in config if key not in known]
        parts = {}
        for part, choices in PARTS.items():
            name = config.get(f"{part}_name", next(iter(choices)))
            if name not in choices:
                problems.append(f"{part}_name is {name!r}, this package supports {' and '.join(choices)}")
                continue
            try:
                parts[part] = choices[name](**_renamed(part, config.get(f"{part}_config") or {}))
            except ValidationError as error:
                problems += [f"{part}_config: {explain(problem, choices[name])}" for problem in error.errors()]
            except TypeError as error:
                problems.append(f"{part}_config: {error}")
        if problems:
            raise ConfigError("not a FocalCodec configuration: " + "; ".join(problems))
        try:
            return cls(**parts, dtype=dtype)
        except ValidationError as error:
            raise ConfigError("; ".join(explain(problem, cls) for problem in error.errors())) from error

    @classmethod
    def from_json(cls, path: str | Path, *, dtype: DType = "float32") -> "CodecConfig":
        """Read a `config.json`.

        Raises:
            ConfigError: The file is not JSON, or not the configuration of a FocalCodec.
        """
        try:
            config = json.loads(Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise ConfigError(f"{path} contains a {type(config).__name__}; a configuration is a JSON object")
        try:
            return cls.from_dict(config, dtype=dtype)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Convert to the ten keys of the official v0.0.2 layout. The compute dtype is not included."""
        result: dict[str, Any] = {}
        for part, choices in PARTS.items():
            config = getattr(self, part)
            result[f"{part}_name"] = next(name for name, kind in choices.items() if kind is type(config))
            result[f"{part}_config"] = asdict(config)
        return result


def _renamed(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the decoder keys of v0.0.1 by those of v0.0.2."""
    config = dict(config)
    if part == "decoder" and "input_channels" in config:
        config.setdefault("input_dim", config.pop("input_channels"))
        config.pop("padding", None)
    return config


def _offline(*downscale_factors: int) -> CodecConfig:
    focal: dict[str, Any] = {"focal_window": 7, "focal_factor": 2}
    return CodecConfig(
        encoder=EncoderConfig(),
        compressor=CompressorConfig(
            output_dim=13, hidden_dims=(1024, 512, 256), downscale_factors=downscale_factors, **focal
        ),
        quantizer=QuantizerConfig(codebook_size=2**13),
        decompressor=DecompressorConfig(
            input_dim=13, hidden_dims=(256, 512, 1024), upscale_factors=downscale_factors[::-1], **focal
        ),
        decoder=VocosConfig(),
    )


def _causal(code_dim: int) -> CodecConfig:
    return CodecConfig(
        encoder=EncoderConfig(causal=True),
        compressor=CompressorConfig(output_dim=code_dim, causal=True),
        quantizer=QuantizerConfig(codebook_size=2**code_dim),
        decompressor=DecompressorConfig(input_dim=code_dim, causal=True),
        decoder=WaveNeXtConfig(causal=True),
    )


PRESETS: dict[str, CodecConfig] = {
    "focalcodec_50hz": _offline(1, 1, 1),
    "focalcodec_25hz": _offline(2, 1, 1),
    "focalcodec_12_5hz": _offline(2, 2, 1),
    "focalcodec_50hz_65k_causal": _causal(16),
    "focalcodec_50hz_4k_causal": _causal(12),
    "focalcodec_50hz_2k_causal": _causal(11),
}
"""The six published models, by the names of their repositories under `lucadellalib/` on the Hugging Face Hub."""
