"""Sections of a training configuration, as checked dataclasses. `run_config.TrainConfig` joins them."""

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
    """Factor on the random weights of the first convolution. The LayerNorm after it removes the input level, except
    for inputs near its epsilon. A gain well below 1 brings speech into that range."""
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
    """Folders or manifests to train on: output of `prepare`, or plain recordings."""
    valid: tuple[str, ...] = ()
    """Folders or manifests to validate on."""
    batch_size: PositiveInt = 16
    """Recordings per step, over all devices."""
    crop_seconds: PositiveFloat | None = None
    """Length of the random crops that end-to-end stages train on. Other stages take whole recordings."""
    speed: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Slowest and fastest playback speed. Each crop draws a random speed, which also moves pitch and formants (Ko et
    al., 2015)."""
    min_seconds: NonNegativeFloat = 0.1
    """Shorter recordings are left out and counted."""
    max_seconds: PositiveFloat = 60.0
    """Longer recordings are left out and counted."""
    bucket_growth: Annotated[float, Field(gt=1)] = 1.25
    """Ratio of neighbouring length buckets. One program is compiled per bucket."""
    workers: NonNegativeInt = 2
    """Processes that read and decode audio; 0 reads in the training process."""
    max_bad_share: Share = 0.01
    """The run stops when more than this share of its recordings is unreadable."""


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
    """Discriminators of HiFi-GAN. The default is its set of eight."""

    periods: tuple[PositiveInt, ...] = (2, 3, 5, 7, 11)
    num_scales: NonNegativeInt = 3
    width: PositiveFloat = 1.0
    """Factor on the channels of every layer. Small runs use less than 1."""

    def __post_init__(self):
        if not self.periods and not self.num_scales:
            raise ValueError("give at least one period or one scale")

    def channels(self, full: int) -> int:
        """Channels of a layer that has `full` channels at width 1."""
        return max(4, round(full * self.width / 4) * 4)


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """Weight of each loss. A weight of 0 disables the loss."""

    feature: NonNegativeFloat = 1.0
    """MSE between the encoder's features and the features rebuilt from codes. The decoder stage does not use it."""
    entropy: NonNegativeFloat = 0.1
    """Entropy per frame minus the weighted entropy of the codebook."""
    diversity: NonNegativeFloat = 1.0
    """Weight of the codebook's entropy within the entropy loss."""
    inv_temperature: PositiveFloat = 100.0
    """Inverse temperature of the soft code assignment in the entropy loss."""
    mel: NonNegativeFloat = 45.0
    """L1 between log-mel spectrograms."""
    mels: tuple[MelConfig, ...] = (MelConfig(),)
    """Resolutions of the log-mel loss, which is averaged over them."""
    adversarial: NonNegativeFloat = 1.0
    """Hinge loss of the generator against the discriminators."""
    matching: NonNegativeFloat = 54.0
    """L1 between the discriminators' activations for real and generated audio."""


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW after clipping by global norm. Generator and discriminators use the same settings."""

    learning_rate: PositiveFloat = 5e-4
    betas: tuple[Share, Share] = (0.9, 0.98)
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat = 5.0
    accumulate: PositiveInt = 1
    """Micro-batches per step, whose gradients are averaged. The codebook's entropy is then computed per micro-batch."""
    patience: PositiveInt = 5
    """The run stops after this many consecutive steps with a non-finite loss or gradient. Such steps change no
    parameter."""
    schedule: Literal["constant", "newbob", "epoch", "cosine"] = "constant"
    """newbob: × `factor` when validation improves by less than `threshold`; epoch: × `factor` after each epoch;
    cosine: decay to zero at the end of the run."""
    factor: Share = 0.9
    threshold: NonNegativeFloat = 0.0025
    warmup_steps: NonNegativeInt = 0


@dataclass(frozen=True, config=STRICT)
class MeshConfig:
    """Devices along each mesh axis; −1 takes the remaining devices. Batches are split over data × fsdp, parameters and
    moments over fsdp, and matrix products over tensor."""

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
    """Steps between checkpoints."""
    keep_last: PositiveInt = 2
    """Number of the newest checkpoints to keep."""
    keep_every: PositiveInt | None = None
    """Also keep every checkpoint whose step is a multiple of this."""


@dataclass(frozen=True, config=STRICT)
class LogConfig:
    """What a run records."""

    every: PositiveInt = 10
    """Steps between lines of `metrics.jsonl`. Each line holds means over these steps."""
    tensorboard: bool = False
    """Also write TensorBoard files."""
    wandb: str | None = None
    """Project name on Weights & Biases."""
    examples: NonNegativeInt = 4
    """Validation recordings whose reconstruction is logged as audio and as a spectrogram."""
