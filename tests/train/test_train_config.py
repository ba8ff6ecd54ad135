"""The configuration of a run: every problem is named before anything is computed."""

from pathlib import Path

import pytest
from support.training import tiny

from focalcodec_jax.errors import ConfigError
from focalcodec_jax.train.run_config import config_file, from_dict, load_config
from focalcodec_jax.train.schedule import NewBob, learning_rate
from focalcodec_jax.train.start import codec_config

PACKAGED = sorted(path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_configurations_are_lab_notes(name: str):
    config = load_config(name)
    note = config_file(name).read_text().split("stage:")[0]
    assert note.startswith("# ")
    assert f"train run {name}" in note
    if config.model.checkpoint is None:
        codec_config(config.model)


def test_overrides_are_yaml(tmp_path: Path):
    config = load_config(
        "smoke", ["optimizer.learning_rate=3e-4", "data.train=[a, b]", "mesh.fsdp=2", "checkpoint.keep_every=null"]
    )
    assert config.optimizer.learning_rate == 3e-4
    assert config.data.train == ("a", "b")
    assert config.mesh.fsdp == 2
    assert config.checkpoint.keep_every is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.learning_rate=1", r"unknown key optimiser \(did you mean optimizer\?\)"),
        ("data.batchsize=3", r"unknown key data\.batchsize \(did you mean batch_size\?\)"),
        ("data.batch_size=0", r"data\.batch_size: .*greater than 0, got 0"),
        ("data.batch_size=many", r"data\.batch_size: .*integer.*'many'"),
        ("stage=quantiser", r"stage: .*'quantizer'.*'quantiser'"),
        ("epochs=3", "either epochs or steps"),
        ("steps", "'steps' is not key.sub=value"),
        ("steps.more=1", "steps is a value and has no keys"),
        ("optimizer.accumulate=3", "accumulate must divide"),
        ("mesh.data=0", "sizes are positive"),
        ("model.preset=focalcodec_50hz", "exactly one of checkpoint, preset and codec"),
        ("trainable=[decoder]", r"the end-to-end stage trains encoder, .*; remove trainable"),
        ("stage=fine-tune", r"needs the parts to train in trainable; the fine-tune stage needs model\.checkpoint"),
        ("data.crop_seconds=null", r"the end-to-end stage needs data\.crop_seconds"),
        ("stage=quantizer", r"the quantizer stage takes whole recordings; remove data\.crop_seconds"),
        ("data.speed=[1.2, 0.8]", r"data\.speed is the slowest and the fastest"),
        ("data.speed=1.2", r"data\.speed: .*, got 1\.2"),
        ("data: [", "not key.sub=value"),
        ("data.train=[", "'data.train=\\[' is not YAML; a shell needs quotes"),
        ("data.train=sample", r"data\.train: Input should be a list, got 'sample'"),
        ("loss.mels={n_fft: 512}", r"loss\.mels: Input should be a list"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config("smoke", [override])


def test_everything_wrong_at_once():
    with pytest.raises(ConfigError, match=r"unknown key model\.dtpe.*; .*data\.workers"):
        from_dict({"stage": "decoder", "model": {"preset": "x", "dtpe": 1}, "data": {"workers": -1}, "steps": 1})


def test_no_such_file():
    with pytest.raises(ConfigError, match=r"not a file, and not one of .*smoke"):
        load_config("quantizer_60hz")


def test_schedules():
    def rates(schedule: str, **changes) -> list[float]:
        config = tiny(optimizer={"learning_rate": 1.0, "schedule": schedule, **changes}).optimizer
        return [learning_rate(config, step, total=8, per_epoch=2) for step in range(1, 9)]

    assert rates("constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert rates("epoch", factor=0.5) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    cosine = rates("cosine")
    assert cosine[0] == 1
    assert cosine[4] == pytest.approx(0.5)
    assert 0 < cosine[-1] < 0.05


def test_newbob_lowers_the_rate_when_validation_hardly_improves():
    config = tiny(optimizer={"schedule": "newbob", "factor": 0.5, "threshold": 0.01}, data={"valid": ["x"]}).optimizer
    newbob, factors = NewBob(), []
    for loss in (2.0, 1.0, 0.995, 0.5, 0.6, -1.0, -1.005, -1.1):
        newbob.update(config, loss)
        factors.append(newbob.rate_factor)
    assert factors == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    newbob.update(config, float("nan"))
    assert newbob == NewBob(0.125, -1.1)
    with pytest.raises(ConfigError, match=r"newbob follows validation, which needs data\.valid"):
        tiny(optimizer={"schedule": "newbob"})
