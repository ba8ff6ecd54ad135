"""Small training runs: they learn, stop, resume exactly, and become a codec."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.training import measured, recordings, tiny, voiced
from typer.testing import CliRunner

from focalcodec_jax import Codec
from focalcodec_jax.cli import app
from focalcodec_jax.config import CodecConfig
from focalcodec_jax.errors import CheckpointError, ConfigError, FocalCodecError, TrainingError
from focalcodec_jax.files import SAMPLE_RECORDING
from focalcodec_jax.nn.codec import FocalCodec, initialize
from focalcodec_jax.pretrained import load_pretrained, save_pretrained
from focalcodec_jax.recordings import audio
from focalcodec_jax.train import (
    RunMessage,
    RunReport,
    StepProgress,
    TrainConfig,
    ValidationProgress,
    codec_from_runs,
    run,
)
from focalcodec_jax.train.log import Log
from focalcodec_jax.train.start import CODEC as STARTED, changes_since
from focalcodec_jax.train.stopping import Stop


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return recordings(tmp_path_factory.mktemp("data") / "speech")


EVENTS: list[Any] = []
"""What the run of the `quantizer` fixture reported."""


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory) -> RunReport:
    """A complete run of the quantizer stage."""
    run_dir = tmp_path_factory.mktemp("runs") / "quantizer"
    data = {"train": [str(folder)], "valid": [str(folder)]}
    config = tiny(data=data, steps=12, validate_every=6, checkpoint={"every": 4})
    return run(config, run_dir, progress=EVENTS.append)


@pytest.fixture(scope="module")
def quantizer(report: RunReport) -> Path:
    """Folder of that run."""
    return report.run_dir


def test_a_run_reports_its_progress_and_result(report: RunReport):
    train, valid = measured(report.run_dir, "train"), measured(report.run_dir, "valid")
    assert (report.step, report.stopped) == (12, False)
    assert report.train_loss == pytest.approx(train[-1]["loss/total"])
    assert report.valid_loss == pytest.approx(valid[-1]["loss/total"])
    messages = [event for event in EVENTS if isinstance(event, RunMessage)]
    assert [message.level for message in messages] == ["phase", "phase", "info", "info"]
    assert messages[-1].text == "done: 12 steps"
    first, *steps = [event for event in EVENTS if isinstance(event, StepProgress)]
    assert first == StepProgress(0, 12)
    assert [(event.step, event.logged) for event in steps] == [(step, True) for step in range(1, 13)]
    assert [event.step for event in EVENTS if isinstance(event, ValidationProgress)] == [6, 12]


def test_tensorboard_shows_and_plays(decoder: Path):
    content = b"".join(path.read_bytes() for path in (decoder / "tensorboard").iterdir())
    for tag in ("train/score/real", "valid/loss/mel", "spectrogram/valid_1", "valid_0/fake", "valid_1/real"):
        assert tag.encode() in content
    assert b"valid_2" not in content


@pytest.mark.live
def test_weights_and_biases_shows_and_plays_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In offline mode, where wandb writes to a file instead of sending."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir, config = tmp_path / "voices", tiny(log={"wandb": "speech"})
    run_dir.mkdir()
    for step in (2, 3):
        log = Log(run_dir, config.log, config.to_dict(), step=step, first=True)
        log.scalars(step, "valid", {"loss/mel": 1 / step})
        assert log.shows_examples
        log.example(step, "valid_0", voiced(0.5, 0), voiced(0.5, 1))
        log.close()
    logged = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logged) == 2
    assert len({path.name for path in logged}) == 1, "both logs continue one run"
    tags = (b"valid/loss/mel", b"valid_0/fake", b"valid_0/real", b"spectrogram/valid_0")
    deadline = time.monotonic() + 60  # The process of wandb may still be writing.
    while missing := [tag for tag in tags for path in logged if tag not in path.read_bytes()]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.2)
    media = {path.suffix for path in run_dir.rglob("media/**/*.*")}
    assert media == {".wav", ".png"}


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r'log.wandb needs wandb: pip install "focalcodec-jax\[wandb\]"'):
        run(tiny(log={"wandb": "speech"}), tmp_path)


@pytest.fixture(scope="module")
def decoder(folder: Path, quantizer: Path, tmp_path_factory) -> Path:
    """A run of the decoder stage from the same codec. It ends after three steps and resumes to six."""
    run_dir = tmp_path_factory.mktemp("runs") / "decoder"
    for steps in (3, 6):
        run(decoder_config(folder, quantizer, steps=steps), run_dir)
    return run_dir


def decoder_config(folder: Path, quantizer: Path, **changes: Any) -> TrainConfig:
    data = {"train": [str(folder)], "valid": [str(folder)]}
    model = {"codec": None, "checkpoint": str(quantizer / STARTED)}
    log = {"every": 1, "tensorboard": True, "examples": 2}
    return tiny("decoder", data=data, model=model, checkpoint={"every": 100}, log=log, **changes)


def test_a_run_learns_and_says_so(quantizer: Path):
    train, valid = measured(quantizer, "train"), measured(quantizer, "valid")
    assert [line["step"] for line in train] == list(range(1, 13))
    assert [line["step"] for line in valid] == [6, 12]
    assert train[-1]["loss/total"] < 0.9 * train[0]["loss/total"]
    assert valid[-1]["loss/total"] < valid[0]["loss/total"]
    for line in train:
        assert line["loss/total"] == pytest.approx(line["loss/feature"] + 0.1 * line["loss/entropy"], rel=1e-5)
        assert 0 < line["code_usage"] <= 1
        assert line["generator/gradient_norm"] > 0
        assert line["generator/update_norm"] > 0
        assert line["learning_rate"] == pytest.approx(1e-3)
    kept = [json.loads(path.read_text()) for path in (quantizer / "checkpoints" / "12").glob("*_METADATA")]
    assert [meta["custom_metadata"]["config"]["steps"] for meta in kept if "custom_metadata" in meta] == [12]


def test_going_on_equals_not_stopping(folder: Path, quantizer: Path, decoder: Path, tmp_path: Path):
    """Bit for bit, discriminators and their power iteration included."""
    run(decoder_config(folder, quantizer, validate_every=6), tmp_path)
    assert measured(decoder, "train") == measured(tmp_path, "train")
    assert [line["event"] for line in measured(decoder, "event")] == ["resumed"]
    names = set(measured(tmp_path, "train")[-1])
    assert {"loss/discriminator", "loss/adversarial", "loss/matching", "loss/mel", "score/real", "score/fake"} <= names


def test_stopped_during_validation_it_validates_when_it_goes_on(
    folder: Path, quantizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = {"train": [str(folder)], "valid": [str(folder)]}
    config = tiny(data=data, steps=12, validate_every=6)
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "now", True)
        run(config, tmp_path)
    assert [line["step"] for line in measured(tmp_path, "train")] == list(range(1, 7))
    assert not measured(tmp_path, "valid")
    run(config, tmp_path)
    for split in ("train", "valid"):
        assert measured(tmp_path, split) == measured(quantizer, split)


def test_validation_that_cannot_be_read_stops_the_run(folder: Path, tmp_path: Path):
    valid = tmp_path / "valid"
    valid.mkdir()
    for path in sorted(folder.iterdir())[:4]:
        (valid / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # The header stays intact.
    config = tiny(data={"train": [str(folder)], "valid": [str(valid)]}, steps=1)
    with pytest.raises(TrainingError, match=r"4 of the 4 recordings of data\.valid could not be read"):
        run(config, tmp_path / "run")


def test_export_joins_the_parts_that_runs_trained(quantizer: Path, decoder: Path, tmp_path: Path):
    result = CliRunner().invoke(app, ["train", "export", str(quantizer), str(decoder), "-o", str(tmp_path / "codec")])
    assert result.exit_code == 0, result.output
    before = load_file(quantizer / STARTED / "model.safetensors")
    after = load_file(tmp_path / "codec" / "model.safetensors")
    changed = {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"compressor", "decompressor", "decoder"}
    codec = Codec.from_pretrained(tmp_path / "codec")
    (toks,) = codec.encode(audio.read(SAMPLE_RECORDING), audio.SAMPLE_RATE_HZ)
    assert len(toks) > 300
    assert 0 <= toks.min() <= toks.max() < 16


def test_export_in_half_precision(quantizer: Path, tmp_path: Path):
    report = codec_from_runs([quantizer], tmp_path / "codec", dtype="float16")
    assert report.output == tmp_path / "codec"
    assert [(item.run, item.parts, item.step) for item in report.taken] == [
        (quantizer, ("compressor", "decompressor"), 12)
    ]
    half = load_file(tmp_path / "codec" / "model.safetensors")
    assert {array.dtype for array in half.values()} == {np.dtype(np.float16)}
    _, variables = load_pretrained(tmp_path / "codec")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_export_refuses_parts_that_do_not_fit(quantizer: Path, decoder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="both trained compressor, decompressor"):
        codec_from_runs([quantizer, quantizer], tmp_path)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        codec_from_runs([tmp_path], tmp_path / "codec")
    with pytest.raises(CheckpointError, match="contains no step 3; it has"):
        codec_from_runs([quantizer], tmp_path / "codec", step=3)
    with pytest.raises(ConfigError, match="a step can only be chosen for a single run"):
        codec_from_runs([quantizer, decoder], tmp_path, step=6)


def test_one_decoder_for_all_token_rates(folder: Path, quantizer: Path, decoder: Path, tmp_path: Path):
    """A decoder depends on the encoder only: it fits a quantizer of half the rate, but not one of another encoder."""
    model, variables = load_pretrained(quantizer / STARTED)
    content = model.config.to_dict()
    content["compressor_config"]["downscale_factors"] = content["decompressor_config"]["upscale_factors"] = [2]
    slower = FocalCodec(CodecConfig.from_dict(content))
    fresh = dict(initialize(slower, jax.random.key(1))["params"])
    for name, encoder in (("slower", variables["params"]["encoder"]), ("stranger", fresh["encoder"])):
        save_pretrained(tmp_path / name, slower, {"params": {**fresh, "encoder": encoder}})
        data = {"train": [str(folder)]}
        begin = {"codec": None, "checkpoint": str(tmp_path / name)}
        run(tiny(data=data, model=begin, steps=1), tmp_path / "runs" / name)
    for order in (1, -1):
        codec_from_runs([tmp_path / "runs" / "slower", decoder][::order], tmp_path / "codec")
        codec = Codec.from_pretrained(tmp_path / "codec")
        assert codec.config.token_rate_hz == model.config.token_rate_hz / 2
    for part in ("compressor", "decoder"):
        name = next(n for n in load_file(tmp_path / "codec" / "model.safetensors") if n.startswith(f"{part}."))
        same = [load_file(tmp_path / at / "model.safetensors")[name] for at in ("codec", "slower")]
        assert not np.array_equal(same[0], same[1])
    with pytest.raises(CheckpointError, match="was trained with another encoder than the codec would have"):
        codec_from_runs([tmp_path / "runs" / "stranger", decoder], tmp_path / "codec")


def test_curves_are_drawn(quantizer: Path, decoder: Path, tmp_path: Path):
    runner = CliRunner()
    picture = tmp_path / "curves.png"
    assert runner.invoke(app, ["train", "plot", str(quantizer), str(decoder), "-o", str(picture)]).exit_code == 0
    assert picture.stat().st_size > 20_000
    for arguments, message in (
        ([str(tmp_path), "-o", str(picture)], r"contains no metrics\.jsonl"),
        ([str(quantizer), "-o", "curves.xyz"], "does not end in a picture format"),
    ):
        assert message.replace("\\", "") in str(runner.invoke(app, ["train", "plot", *arguments]).exception)


def test_a_folder_of_another_run_is_refused(quantizer: Path):
    kept = (quantizer / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"stage was 'quantizer', now 'decoder'.*give another folder"):
        run(tiny("decoder"), quantizer)
    assert (quantizer / "config.yaml").read_text() == kept


def test_discriminators_cannot_come_or_go(folder: Path, quantizer: Path, decoder: Path):
    """Their state is in the checkpoints. A stage without discriminators ignores their configuration."""
    with pytest.raises(ConfigError, match=r"loss\.adversarial was 1\.0, now 0\.0; loss\.matching was"):
        changes_since(decoder, decoder_config(folder, quantizer, loss={"adversarial": 0.0, "matching": 0.0}))
    with pytest.raises(ConfigError, match=r"discriminator\.width was 0\.01, now 0\.02"):
        changes_since(decoder, decoder_config(folder, quantizer, discriminator={"width": 0.02}))
    assert "discriminator.width" in changes_since(quantizer, tiny(discriminator={"width": 0.02}))


def test_a_start_that_failed_is_no_run(folder: Path, quantizer: Path, tmp_path: Path):
    """After a wrong configuration, the same folder accepts the right one."""
    data = {"train": [str(folder)]}
    for wrong in (
        {"model": {"codec": None, "checkpoint": str(tmp_path / "nowhere")}, "data": data},
        {"model": {"codec": None, "checkpoint": str(quantizer / STARTED)}, "data": {"train": [str(tmp_path / "none")]}},
    ):
        with pytest.raises(FocalCodecError, match=r"nowhere|does not exist"):
            run(tiny(**wrong), tmp_path / "run")
    run(tiny(data=data, steps=1), tmp_path / "run")
    assert measured(tmp_path / "run", "train")[0]["step"] == 1


def test_losses_that_are_not_finite_stop_the_run(folder: Path, tmp_path: Path):
    config = tiny(
        data={"train": [str(folder)]},
        optimizer={"learning_rate": 1e30, "patience": 2},
        steps=20,
        checkpoint={"every": 1},
    )
    with pytest.raises(TrainingError, match=r"stopped at step \d+: loss/\w+.* was NaN or infinite for 2 steps"):
        run(config, tmp_path)
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_too_many_unreadable_recordings_stop_the_run(folder: Path, tmp_path: Path):
    source = recordings(tmp_path / "speech", count=8)
    for number in range(4):
        (source / f"broken-{number}.wav").write_bytes(b"RIFF")
    config = tiny(data={"train": [str(source)], "max_bad_share": 0.1})
    with pytest.raises(TrainingError, match=r"could not be read, more than data.max_bad_share 0.1.*such as broken-"):
        run(config, tmp_path / "run")
    assert {line["id"] for line in measured(tmp_path / "run", "event")} <= {f"broken-{n}" for n in range(4)}
