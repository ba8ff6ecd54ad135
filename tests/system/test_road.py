"""The complete workflow: import a WavLM, train both stages on its features, and use the resulting codec.

The weights are full-size and all eight discriminators train. The test is marked `large`, because it needs gigabytes of
memory and minutes of time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.compiling import UNOPTIMISED_FLAGS
from support.fullsize import write_wavlm

from focalcodec_jax.files import SAMPLE_RECORDING
from focalcodec_jax.recordings import audio

pytestmark = pytest.mark.large


def command(*arguments: Any) -> None:
    """Run a command in a process of its own, which frees its memory. Compiling without optimisation saves minutes."""
    command = [sys.executable, "-m", "focalcodec_jax.cli", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=1500, env=os.environ | {"XLA_FLAGS": UNOPTIMISED_FLAGS})


def validation_losses(run_dir: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["split"] == "valid"]


def test_from_wavlm_to_a_codec_that_speaks(tmp_path: Path):
    """Within a few small steps, the validation loss falls to 0.9 of its first value for features, and 0.98 for mel."""
    sig = audio.read(SAMPLE_RECORDING)
    for split, start, stop in (("train", 0, 6), ("valid", 6, 7)):
        for second in range(start, stop):
            (tmp_path / split).mkdir(exist_ok=True)
            piece = sig[16_000 * second : 16_000 * (second + 1)]
            soundfile.write(tmp_path / split / f"second-{second}.wav", piece, 16_000, subtype="FLOAT")
    write_wavlm(tmp_path / "wavlm")
    command("convert", "import", tmp_path / "wavlm", "-o", tmp_path / "start", "--preset", "focalcodec_50hz")
    command("prepare", tmp_path / "train", "-o", tmp_path / "shards", "--rate-hz", 16_000)

    runs = {"quantizer_50hz": ("loss/feature", 12, 0.9), "decoder_16khz": ("loss/mel", 3, 0.98)}
    for recipe, (loss, steps, ratio) in runs.items():
        changes = {
            "model.checkpoint": tmp_path / "start",
            "data.train": f"[{tmp_path / 'shards'}]",
            "data.valid": f"[{tmp_path / 'valid'}]",
            "data.batch_size": 2,
            "data.workers": 0,
            "epochs": "null",
            "steps": steps,
            "validate_every": steps // 3,
            "optimizer.learning_rate": 1e-4,
            "checkpoint.every": 1000,
            "log.every": 1,
        }
        overrides = [f"{key}={value}" for key, value in changes.items()]
        run_dir = tmp_path / recipe
        command("train", "run", recipe, "--run-dir", run_dir, *overrides)
        first, *_, last = validation_losses(run_dir, loss)
        assert last < ratio * first, (recipe, first, last)

    command("train", "export", *(tmp_path / recipe for recipe in runs), "-o", tmp_path / "codec")
    command("reconstruct", SAMPLE_RECORDING, "-o", tmp_path / "out.wav", "--checkpoint", tmp_path / "codec")
    decoded = audio.read(tmp_path / "out.wav")
    assert abs(len(decoded) - len(sig)) <= 400
    assert np.abs(decoded).max() > 1e-3
