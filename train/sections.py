"""Sections of a training configuration, as checked dataclasses. `run_config.TrainConfig` combines them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from focalcodec_jax.config import DType

STRICT = ConfigDict(extra="forbid")
Part = Literal["encoder", "compressor", "decompressor", "decoder"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Parts of a codec that have parameters, in the order of the signal."""
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The codec and its compute dtype. Exactly one of `checkpoint`, `preset` and `codec` selects the codec."""

    checkpoint: str | None = None
    """Folder or hub name of the codec that training starts from: a result of `convert import`, or a published model."""
    preset: str | None = None
    """Name of a published architecture, which is initialized with random weights."""
    codec: Mapping[str, Any] | None = None
    """Architecture in the keys of a published `config.json`, which is initialized with random weights."""
    input_gain: PositiveFloat = 1.0
    """Factor on the random weights of the first convolution. The LayerNorm after it removes the level of the input,
    unless the input is close to its epsilon. A factor well below 1 brings speech into that range."""
    dtype: DType = "float32"
    """Compute dtype. Parameters, norms, softmax, quantizer, Fourier transforms and losses stay in float32."""
    remat: bool = False
    """Recompute the activations of each part in the backward pass. This saves memory and costs about a third more
    arithmetic."""

    def __post_init__(self):
        given = [name for name in ("checkpoint", "preset", "codec") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of checkpoint, preset and codec (given: {', '.join(given) or 'none'})")


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Recordings, and how they are batched."""

    train: tuple[str, ...] = ()
    """Inputs to train on, as for `tokenize`: output of `prepare`, or other recordings."""
    valid: tuple[str, ...] = ()
    """Inputs to validate on, of the same kinds."""
    batch_size: PositiveInt = 16
    """Number of recordings per step, over all devices."""
    crop_seconds: PositiveFloat | None = None
    """Length in seconds of the random crops that end-to-end stages train on. Other stages use whole recordings."""
    speed: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Slowest and fastest playback speed. Each crop has a random speed, which also changes pitch and formants (Ko et
    al., 2015)."""
    min_seconds: NonNegativeFloat = 0.1
    """Shorter recordings are left out. The log reports their number."""
    max_seconds: PositiveFloat = 60.0
    """Longer recordings are left out. The log reports their number."""
    bucket_growth: Annotated[float, Field(gt=1)] = 1.25
    """Ratio of neighbouring length buckets. One program is compiled per bucket."""
    workers: NonNegativeInt = 2
    """Number of processes that read and decode audio. 0 reads in the training process."""
    max_bad_share: Share = 0.01
    """The run stops if more than this share of its recordings is unreadable."""


@dataclass(frozen=True, config=STRICT)
class MelConfig:
    """One resolution of the log-mel loss."""

    n_fft: PositiveInt = 1024
    hop_length: PositiveInt = 320
    num_mels: PositiveInt = 80
    min_hz: NonNegativeFloat = 0.0
    max_hz: PositiveFloat = 8000.0
    floor: PositiveFloat = 1e-5
    """Mel magnitudes are clamped to at least this value, so that quieter bands do not count."""


@dataclass(frozen=True, config=STRICT)
class DiscriminatorConfig:
    """Discriminators of HiFi-GAN. The default has the eight discriminators of the paper."""

    periods: tuple[PositiveInt, ...] = (2, 3, 5, 7, 11)
    """Periods of the multi-period discriminators, in samples."""
    num_scales: NonNegativeInt = 3
    """Number of multi-scale discriminators."""
    width: PositiveFloat = 1.0
    """Factor on the number of channels of every layer. Small runs use less than 1."""

    def __post_init__(self):
        if not self.periods and not self.num_scales:
            raise ValueError("give at least one period or one scale")

    def channels(self, full: int) -> int:
        """Number of channels of a layer that has `full` channels at width 1."""
        return max(4, round(full * self.width / 4) * 4)


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """Weights and settings of the losses. A weight of 0 disables the loss."""

    feature: NonNegativeFloat = 1.0
    """MSE between the features of the encoder and the features rebuilt from codes. The decoder stage does not use it.
    """
    entropy: NonNegativeFloat = 0.1
    """Entropy per frame minus the weighted entropy of the codebook."""
    diversity: NonNegativeFloat = 1.0
    """Weight of the entropy of the codebook within the entropy loss."""
    inv_temperature: PositiveFloat = 100.0
    """Inverse temperature of the soft code assignment in the entropy loss."""
    mel: NonNegativeFloat = 45.0
    """L1 distance between log-mel spectrograms."""
    mels: tuple[MelConfig, ...] = (MelConfig(),)
    """Resolutions of the log-mel loss. The loss is their average."""
    adversarial: NonNegativeFloat = 1.0
    """Hinge loss of the generator against the discriminators."""
    matching: NonNegativeFloat = 54.0
    """L1 distance between the activations of the discriminators for real and generated audio."""


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW after clipping by global norm. Generator and discriminators use the same settings."""

    learning_rate: PositiveFloat = 5e-4
    betas: tuple[Share, Share] = (0.9, 0.98)
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat = 5.0
    accumulate: PositiveInt = 1
    """Number of micro-batches per step, whose gradients are averaged. The entropy of the codebook is computed for each
    micro-batch."""
    patience: PositiveInt = 5
    """The run stops after this many consecutive updates with a non-finite gradient. These updates are skipped."""
    schedule: Literal["constant", "newbob", "epoch", "cosine"] = "constant"
    """newbob multiplies the learning rate by `factor` if validation improves by less than `threshold`. epoch multiplies
    it by `factor` after each epoch. cosine lowers it to zero at the end of the run."""
    factor: Share = 0.9
    """Factor on the learning rate, for the schedules newbob and epoch."""
    threshold: NonNegativeFloat = 0.0025
    """Relative improvement of the validation loss, for the schedule newbob."""
    warmup_steps: NonNegativeInt = 0
    """Number of steps in which the learning rate rises linearly, for every schedule."""


@dataclass(frozen=True, config=STRICT)
class MeshConfig:
    """Number of devices along each mesh axis. −1 uses the remaining devices.

    Batches are split over data × fsdp, parameters and moments over fsdp, and matrix products over tensor.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = asdict(self)
        wrong = {name: size for name, size in sizes.items() if size < 1 and size != -1}
        if wrong or list(sizes.values()).count(-1) > 1:
            raise ValueError(f"sizes are positive, and at most one is -1 (given: {sizes})")


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """When checkpoints are written, and which ones are kept."""

    every: PositiveInt = 1000
    """Number of steps between checkpoints."""
    keep_last: PositiveInt = 2
    """Number of the newest checkpoints to keep."""
    keep_every: PositiveInt | None = None
    """Also keep every checkpoint whose step is a multiple of this number."""


@dataclass(frozen=True, config=STRICT)
class LogConfig:
    """Logs of a run."""

    every: PositiveInt = 10
    """Number of steps between lines of `metrics.jsonl`. Each line contains means over these steps."""
    tensorboard: bool = False
    """Also write TensorBoard files."""
    wandb: str | None = None
    """Project name on Weights & Biases. None disables this log."""
    examples: NonNegativeInt = 4
    """Number of validation recordings whose reconstruction is logged as audio and as a spectrogram."""
