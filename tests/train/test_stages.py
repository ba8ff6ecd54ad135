"""Stages as records: a new stage trains without changes elsewhere, and no other code names a stage."""

import ast
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from support.training import checkpoint, measured, recordings, tiny
from support.typecheck import checks_off

from focalcodec_jax.errors import ConfigError
from focalcodec_jax.nn import lengths as count
from focalcodec_jax.pretrained import load_pretrained
from focalcodec_jax.train import codec_from_runs, dry_run, run
from focalcodec_jax.train.checkpoint import load_params
from focalcodec_jax.train.sections import PARTS
from focalcodec_jax.train.stages import STAGES, Batch, Outcome, Stage, StageContext, merge_params
from focalcodec_jax.train.start import CODEC

ROOT = Path(__file__).parents[2]
FROZEN = r"encoder/encoder/(positional|relative)_embedding"


def distill(context: StageContext, params, batch: Batch) -> Outcome:
    """An encoder that learns the features of a teacher."""
    frames = count.samples_to_frames(context.model.config, batch.lengths)
    feats = context.apply(params, "sig_to_feats", batch.sig, batch.lengths)
    target = context.apply_teacher(params, "sig_to_feats", batch.sig, batch.lengths)
    return Outcome({"feature": ((feats - target) ** 2).mean()}, frames.sum().astype(jnp.float32))


@pytest.fixture
def dummy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(
        name="dummy",
        forward=distill,
        passes=("encoder",),
        trains=("encoder",),
        frozen=(FROZEN,),
        teacher=checkpoint(tmp_path / "teacher"),
    )
    monkeypatch.setitem(STAGES, "dummy", stage)
    return stage


def test_a_registered_stage_trains_resumes_and_exports(dummy: Stage, tmp_path: Path):
    """With a teacher, and with parameters of a trained part that stay fixed."""
    folder, run_dir = str(recordings(tmp_path / "speech")), tmp_path / "run"
    data = {"train": [folder], "valid": [folder]}
    assert dry_run(tiny("dummy")).step_flop > 0
    assert run(tiny("dummy", data=data, steps=1, seed=3), run_dir).step == 1
    (tmp_path / "teacher").rename(tmp_path / "moved")  # the run folder is enough to resume
    report = run(tiny("dummy", data=data, steps=2, seed=3), run_dir)
    assert (report.step, report.stopped) == (2, False)
    losses = [line["loss/feature"] for line in measured(run_dir, "train")]
    assert losses[0] > 0
    assert report.valid_loss is not None
    before: dict[str, Any] = flatten_dict(load_pretrained(run_dir / CODEC)[1]["params"], sep="/")
    trained: dict[str, Any] = flatten_dict(load_params(run_dir, 2)[0], sep="/")
    assert trained
    assert not any("_embedding/" in path for path in trained)
    assert any(not np.array_equal(leaf, before[path]) for path, leaf in trained.items())
    codec_from_runs([run_dir], tmp_path / "codec")
    after: dict[str, Any] = flatten_dict(load_pretrained(tmp_path / "codec")[1]["params"], sep="/")
    for path, leaf in after.items():
        np.testing.assert_array_equal(leaf, trained.get(path, before[path]), err_msg=path)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_splitting_and_merging_parameters(stage: Stage):
    params = {part: {"kernel": jnp.ones(2), "inner": {"bias": jnp.zeros(1)}} for part in ("encoder", "decoder")}
    trained, frozen = stage.split_params(params, ("decoder",))
    assert (trained.keys(), frozen.keys()) == ({"decoder"}, {"encoder"})
    merged = merge_params(frozen, trained)
    assert jax.tree.structure(merged) == jax.tree.structure(params)


def test_no_other_code_names_a_stage():
    """Outside train/stages, no string is a stage's name, and no comparison has `stage` beside one.

    Parts of a codec share two of the names, which only comparisons are checked for.
    """
    files = [path for path in (ROOT / "train").rglob("*.py") if path.parent.name != "stages"]
    files += [ROOT / "focalcodec_jax" / "cli" / name for name in ("train.py", "train_progress.py")]
    for path in files:
        tree = ast.parse(path.read_text())
        assert not strings(tree) & (STAGES.keys() - set(PARTS) - {"quantizer"}), path
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and strings(node) & STAGES.keys():
                assert "stage" not in ast.unparse(node), path


def strings(tree: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trains": ("compresor",)}, "the dummy stage names unknown parts: compresor"),
        ({"trains": ("decoder",)}, "the dummy stage trains parts that no audio passes: decoder"),
    ],
)
def test_wrong_records_are_refused(changes: dict[str, Any], message: str):
    record: dict[str, Any] = {"name": "dummy", "forward": distill, "passes": ("encoder",), "trains": ("encoder",)}
    with checks_off(), pytest.raises(ConfigError, match=message):
        Stage(**record | changes)


def test_wrong_outcomes_are_refused(dummy: Stage):
    loss = jnp.zeros(())
    with pytest.raises(ConfigError, match="returns the loss 'features'; LossConfig has no weight of this name"):
        dummy.check_outcome(Outcome({"features": loss}, loss), adversarial=False)
    with pytest.raises(ConfigError, match="has discriminators, but returns no real and fake audio"):
        dummy.check_outcome(Outcome({"mel": loss}, loss), adversarial=True)
