"""Configuration of a training run: a YAML file whose every key is checked, and `key.sub=value` changes to it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

from focalcodec_jax.config import DType, explain
from focalcodec_jax.errors import ConfigError

_STRICT = ConfigDict(extra="forbid")
Part = Literal["encoder", "compressor", "decompressor", "decoder"]
Stage = Literal["quantizer", "decoder", "end-to-end", "fine-tune"]
Share = Annotated[float, Field(ge=0, le=1)]

TRAINABLE: dict[str, tuple[Part, ...]] = {
    "quantizer": ("compressor", "decompressor"),
    "decoder": ("decoder",),
    "end-to-end": get_args(Part),
}
"""Parts that a stage trains. Fine-tuning names its own."""


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """Which codec, and how it computes. Exactly one of `checkpoint`, `preset` and `codec` says which."""

    checkpoint: str | None = None
    """A folder or hub name to begin from: what `convert import` wrote, or a published model."""
    preset: str | None = None
    """A published structure with random weights."""
    codec: Mapping[str, Any] | None = None
    """A structure with random weights, in the keys of a published `config.json`."""
    input_gain: PositiveFloat = 1.0
    """Factor on the first convolution of random weights. The LayerNorm after it hides how loud the input is, except
    near its ε; a gain well below 1 brings speech there."""
    dtype: DType = "float32"
    """Compute dtype; parameters, norms, softmax, quantizer, Fourier transforms and losses stay float32."""
    remat: bool = False
    """Recompute each part's activations in the backward pass: less memory, about a third more arithmetic."""

    def __post_init__(self):
        given = [name for name in ("checkpoint", "preset", "codec") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of checkpoint, preset and codec (given: {', '.join(given) or 'none'})")


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Recordings, and how they are put into batches."""

    train: tuple[str, ...] = ()
    """Folders or manifests: what `prepare` wrote, or plain recordings."""
    valid: tuple[str, ...] = ()
    batch_size: PositiveInt = 16
    """Recordings per step, over all devices."""
    crop_seconds: PositiveFloat | None = None
    """Random crops of this length, by the end-to-end stages. The others take whole recordings."""
    speed: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Each crop plays at a random speed between these, pitch and formants with it: more voices than were recorded (Ko
    et al., 2015)."""
    min_seconds: NonNegativeFloat = 0.1
    max_seconds: PositiveFloat = 60.0
    """Recordings outside are left out, and counted."""
    bucket_growth: Annotated[float, Field(gt=1)] = 1.25
    """Each length bucket is this much longer than the one before; one program is compiled per bucket."""
    workers: NonNegativeInt = 2
    """Processes that read and decode; 0 reads in the training process."""
    max_bad_share: Share = 0.01
    """Stop when more than this share of the recordings of a run's first steps could not be read."""


@dataclass(frozen=True, config=_STRICT)
class MelConfig:
    """One resolution of the log-mel loss."""

    n_fft: PositiveInt = 1024
    hop_length: PositiveInt = 320
    num_mels: PositiveInt = 80
    min_hz: NonNegativeFloat = 0.0
    max_hz: PositiveFloat = 8000.0
    floor: PositiveFloat = 1e-5
    """Magnitudes below count as this: how quiet a band may be and still matter."""


@dataclass(frozen=True, config=_STRICT)
class DiscriminatorConfig:
    """HiFi-GAN's eight discriminators by default."""

    periods: tuple[PositiveInt, ...] = (2, 3, 5, 7, 11)
    num_scales: NonNegativeInt = 3
    width: PositiveFloat = 1.0
    """Factor on every layer's channels, for small runs."""

    def __post_init__(self):
        if not self.periods and not self.num_scales:
            raise ValueError("give at least one period or one scale")

    def channels(self, full: int) -> int:
        return max(4, round(full * self.width / 4) * 4)


@dataclass(frozen=True, config=_STRICT)
class LossConfig:
    """Weight of each loss; 0 leaves it out."""

    feature: NonNegativeFloat = 1.0
    """MSE between features and features rebuilt from codes. Not used by the decoder stage."""
    entropy: NonNegativeFloat = 0.1
    diversity: NonNegativeFloat = 1.0
    inv_temperature: PositiveFloat = 100.0
    mel: NonNegativeFloat = 45.0
    mels: tuple[MelConfig, ...] = (MelConfig(),)
    adversarial: NonNegativeFloat = 1.0
    matching: NonNegativeFloat = 54.0


@dataclass(frozen=True, config=_STRICT)
class OptimizerConfig:
    """AdamW behind clipping by global norm; the same for generator and discriminators."""

    learning_rate: PositiveFloat = 5e-4
    betas: tuple[Share, Share] = (0.9, 0.98)
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat = 5.0
    accumulate: PositiveInt = 1
    """Micro-batches per step, one after the other; their gradients are averaged. The codebook's entropy is then of
    each micro-batch."""
    patience: PositiveInt = 5
    """Steps in a row whose loss or gradient is not finite, and which change nothing, before the run stops."""
    schedule: Literal["constant", "newbob", "epoch", "cosine"] = "constant"
    """newbob: × `factor` when validation improves by less than `threshold`; epoch: × `factor` each epoch; cosine: to
    zero at the end of the run."""
    factor: Share = 0.9
    threshold: NonNegativeFloat = 0.0025
    warmup_steps: NonNegativeInt = 0


@dataclass(frozen=True, config=_STRICT)
class MeshConfig:
    """Devices along each axis; −1 takes what the others leave. Batches are split over data × fsdp, parameters and
    their moments over fsdp, matrix products over tensor."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = asdict(self)
        wrong = {name: size for name, size in sizes.items() if size < 1 and size != -1}
        if wrong or list(sizes.values()).count(-1) > 1:
            raise ValueError(f"sizes are positive, and at most one is -1 (given: {sizes})")


@dataclass(frozen=True, config=_STRICT)
class CheckpointConfig:
    every: PositiveInt = 1000
    """Steps between checkpoints."""
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None
    """Keep every checkpoint whose step is a multiple of this, too."""


@dataclass(frozen=True, config=_STRICT)
class LogConfig:
    every: PositiveInt = 10
    """Steps between lines of `metrics.jsonl`, which hold means over those steps."""
    tensorboard: bool = False
    wandb: str | None = None
    """Project name on Weights & Biases."""
    examples: NonNegativeInt = 4
    """Recordings whose reconstruction is kept at validation, as audio and spectrogram."""


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """A whole run. Either `epochs` or `steps` says how long."""

    stage: Stage
    model: ModelConfig
    data: DataConfig = Field(default_factory=DataConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = Field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    mesh: MeshConfig = Field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    trainable: tuple[Part, ...] = ()
    """Parts to train; by default those of the stage. Fine-tuning must name them."""
    crop_frames: PositiveInt = 22
    """Decoder stage: feature frames cropped from each encoded recording."""
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    validate_every: PositiveInt | None = None
    """Steps between validations; by default once per epoch."""
    seed: NonNegativeInt = 0

    def __post_init__(self):
        problems = []
        if (self.epochs is None) == (self.steps is None):
            problems.append("give either epochs or steps")
        if self.stage == "fine-tune" and (not self.trainable or self.model.checkpoint is None):
            problems.append("fine-tuning needs model.checkpoint, and the parts to train in trainable")
        if self.stage != "fine-tune" and self.trainable not in ((), TRAINABLE[self.stage]):
            parts = ", ".join(TRAINABLE[self.stage])
            problems.append(f"the {self.stage} stage trains {parts}; stage: fine-tune chooses")
        if len(set(self.trainable)) != len(self.trainable):
            problems.append("trainable names a part twice")
        if (self.data.crop_seconds is None) == self.whole_model:
            problems.append("end-to-end and fine-tune need data.crop_seconds, the other stages take whole recordings")
        slowest, fastest = self.data.speed
        if slowest > fastest or (self.data.speed != (1.0, 1.0) and self.data.crop_seconds is None):
            problems.append("data.speed is the slowest and the fastest, for stages with data.crop_seconds")
        if self.optimizer.schedule == "newbob" and not self.data.valid:
            problems.append("optimizer.schedule newbob follows validation, which needs data.valid")
        if self.data.min_seconds > self.data.max_seconds:
            problems.append("data.min_seconds exceeds data.max_seconds")
        if self.data.batch_size % self.optimizer.accumulate:
            problems.append("optimizer.accumulate must divide data.batch_size")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts that are trained."""
        return self.trainable or TRAINABLE[self.stage]

    @property
    def passed(self) -> tuple[Part, ...]:
        """Parts that audio passes through in training."""
        without = {"quantizer": ("decoder",), "decoder": ("compressor", "decompressor")}.get(self.stage, ())
        return tuple(part for part in get_args(Part) if part not in without)

    def parted(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A codec's parameters by part: those that are trained, and those that stay."""
        trained = {part: params[part] for part in self.parts}
        return trained, {part: params[part] for part in params if part not in trained}

    @property
    def whole_model(self) -> bool:
        """Crops go through the whole codec, to be compared as audio."""
        return self.stage in ("end-to-end", "fine-tune")

    @property
    def adversarial(self) -> bool:
        """Whether discriminators are trained."""
        return self.stage != "quantizer" and (self.loss.adversarial > 0 or self.loss.matching > 0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_config(name_or_file: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Read a run's configuration.

    Args:
        name_or_file: a YAML file, or the name of one in this package, such as `smoke`.
        overrides: `key.sub=value`; values are YAML, so that lists and numbers are written as in the file.

    Raises:
        ConfigError: no such file, not YAML, or names every unknown key, wrong value and contradiction at once.
    """
    import yaml

    path = config_file(name_or_file)
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; a configuration is a mapping of keys")
    for override in overrides:
        _override(content, override)
    try:
        return from_dict(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_file(name_or_file: str | Path) -> Path:
    """A YAML file's path, or that of the file of this name in the package."""
    path, packaged = Path(name_or_file), Path(str(resources.files("focalcodec_jax") / "configs"))
    if path.is_file():
        return path
    inside = packaged / f"{name_or_file}.yaml"
    if inside.is_file():
        return inside
    names = ", ".join(sorted(file.stem for file in packaged.glob("*.yaml")))
    raise ConfigError(f"no configuration {str(name_or_file)!r}: not a file, and not one of {names}")


def from_dict(content: Mapping[str, Any]) -> TrainConfig:
    """Check a configuration.

    Raises:
        ConfigError: names every problem at once.
    """
    try:
        return TrainConfig(**content)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(problem, TrainConfig) for problem in error.errors())) from error
    except TypeError as error:
        raise ConfigError(str(error)) from error


def _override(content: dict[str, Any], override: str) -> None:
    import yaml

    keys, equals, value = override.partition("=")
    if not equals or not keys:
        raise ConfigError(f"{override!r} is not key.sub=value")
    *outer, last = keys.split(".")
    for key in outer:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {key} is a value and has no keys")
        content = inner
    try:
        content[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r} is not YAML; a shell needs quotes around lists and braces") from error
