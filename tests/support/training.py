"""Runs small enough to compile in seconds, and speech-like recordings to train on."""

import json
import socket
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile

from focalcodec_jax import CodecConfig, FocalCodec, save_pretrained
from focalcodec_jax.nn.codec import initialize
from focalcodec_jax.train.run_config import TrainConfig, from_dict
from focalcodec_jax.train.stages import STAGES

CODEC: dict[str, Any] = {
    "encoder_config": {
        "hidden_dims": [8, 16],
        "kernel_sizes": [20, 16],
        "strides": [20, 16],
        "num_layers": 1,
        "dim": 16,
        "ffn_dim": 32,
        "num_heads": 2,
        "num_buckets": 16,
        "max_distance": 20,
        "conv_pos": 4,
        "conv_pos_groups": 2,
    },
    "compressor_config": {
        "input_dim": 16,
        "output_dim": 4,
        "hidden_dims": [16],
        "downscale_factors": [1],
        "focal_window": 3,
        "focal_level": 1,
    },
    "quantizer_config": {"codebook_size": 16},
    "decompressor_config": {
        "input_dim": 4,
        "output_dim": 16,
        "hidden_dims": [16],
        "upscale_factors": [1],
        "focal_window": 3,
        "focal_level": 1,
    },
    "decoder_name": "Vocos",
    "decoder_config": {"input_dim": 16, "num_layers": 1, "dim": 16, "ffn_dim": 32, "n_fft": 640},
}


def tiny(stage: str = "quantizer", **changes: Any) -> TrainConfig:
    """A configuration of a stage. `changes` are values, or keys of sections."""
    content: dict[str, Any] = {
        "stage": stage,
        "model": {"codec": CODEC},
        "data": {"batch_size": 8, "workers": 0, "bucket_growth": 4.0},
        "loss": {"mels": [{"n_fft": 640, "num_mels": 20}]},
        "discriminator": {"width": 0.01, "periods": [3], "num_scales": 1},
        "optimizer": {"learning_rate": 1e-3},
        "crop_frames": 6,
        "log": {"every": 1},
        "steps": 6,
    }
    if STAGES[stage].crops:
        content["data"]["crop_seconds"] = 0.2
    for key, value in changes.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
    return from_dict(content)


def checkpoint(folder: Path) -> str:
    """Write a codec of that size with random weights to a folder."""
    model = FocalCodec(CodecConfig.from_dict(CODEC))
    save_pretrained(folder, model, initialize(model, jax.random.key(0)))
    return str(folder)


def voiced(seconds: float, seed: int) -> np.ndarray:
    """Harmonics of a gliding pitch, with pauses and noise; (samples,) float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    pitch = 120 + 60 * rng.random() + 20 * np.sin(2 * np.pi * (1 + rng.random()) * time)
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    sig = sum(np.sin(k * phase) / k for k in range(1, 12)) * (np.sin(2 * np.pi * 2 * time + rng.random()) > -0.6)
    return (0.1 * sig + 0.003 * rng.normal(size=time.size)).astype(np.float32)


def recordings(folder: Path, count: int = 10, seconds: tuple[float, float] = (0.3, 0.6)) -> Path:
    """A folder of FLAC files with voiced signals."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.linspace(*seconds, count)
    for number, length in enumerate(lengths):
        soundfile.write(folder / f"utterance-{number:02d}.flac", voiced(float(length), number), 16_000)
    return folder


TIMES = ("steps_per_second", "audio_hours_per_second", "data_wait_share", "tflops_per_second")


def measured(run_dir: Path, split: str) -> list[dict[str, Any]]:
    """Lines of a run's log, without scalars that depend on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines if line["split"] == split]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
