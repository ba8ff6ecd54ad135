"""Configuration of a training run: a YAML file, and overrides of the form `key.sub=value`. Every key is checked."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

from focalcodec_jax.config import explain
from focalcodec_jax.errors import ConfigError

from .sections import (
    STRICT,
    CheckpointConfig,
    DataConfig,
    DiscriminatorConfig,
    LogConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    Part,
)
from .stages import STAGES, Stage


def known_stage(name: str) -> str:
    """Check the name of a stage, and return it."""
    if name not in STAGES:
        *names, last = map(repr, STAGES)
        raise ValueError(f"Input should be {', '.join(names)} or {last}")
    return name


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """A training run. Either `epochs` or `steps` gives its length."""

    stage: Annotated[str, AfterValidator(known_stage)]
    """Name of a stage in `train/stages`. It determines what is trained, and with which losses."""
    model: ModelConfig
    data: DataConfig = Field(default_factory=DataConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = Field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    mesh: MeshConfig = Field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    trainable: tuple[Part, ...] = ()
    """Parts to train, for a stage that lets the configuration choose them."""
    crop_frames: PositiveInt = 22
    """Number of feature frames to crop from each encoded recording, for stages that decode such crops."""
    epochs: PositiveInt | None = None
    """Number of passes over the training data."""
    steps: PositiveInt | None = None
    """Number of steps."""
    validate_every: PositiveInt | None = None
    """Number of steps between validations. The default is one epoch."""
    seed: NonNegativeInt = 0
    """Random seed of weights, batches and crops."""

    def __post_init__(self):
        problems = self.definition.config_problems(self.trainable, self.model, self.data)
        if (self.epochs is None) == (self.steps is None):
            problems.append("give either epochs or steps")
        if len(set(self.trainable)) != len(self.trainable):
            problems.append("trainable names a part twice")
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
    def definition(self) -> Stage:
        """The record of the stage."""
        return STAGES[self.stage]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts that are trained."""
        return self.trainable or self.definition.trains or ()

    @property
    def adversarial(self) -> bool:
        """Whether discriminators are trained."""
        return self.definition.discriminators and (self.loss.adversarial > 0 or self.loss.matching > 0)

    def split_params(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split the parameters of a codec into two trees: the trained parameters, and the fixed ones."""
        return self.definition.split_params(params, self.parts)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as nested dictionaries."""
        return asdict(self)


def load_config(name_or_file: str | Path, overrides: str | Iterable[str] = ()) -> TrainConfig:
    """Read the configuration of a run.

    Args:
        name_or_file: a YAML file, or the name of a configuration in this package, such as `smoke`.
        overrides: changes of the form `key.sub=value`. Values are written as in YAML.

    Raises:
        ConfigError: the file does not exist or is not YAML, or the configuration is invalid. One message names all
            unknown keys, wrong values and contradictions.
    """
    import yaml

    path = config_file(name_or_file)
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} contains a {type(content).__name__}; a configuration is a mapping of keys")
    for override in [overrides] if isinstance(overrides, str) else overrides:
        _override(content, override)
    try:
        return from_dict(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_file(name_or_file: str | Path) -> Path:
    """Path of a YAML file, given as a path or as the name of a configuration in this package.

    Raises:
        ConfigError: there is no such file and no such configuration.
    """
    path, packaged = Path(name_or_file), Path(str(resources.files("focalcodec_jax.configs")))
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
        ConfigError: the configuration is invalid. The message names all problems.
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
