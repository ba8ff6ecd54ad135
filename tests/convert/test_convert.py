"""Importing weights in both FocalCodec layouts and both WavLM layouts, and comparing checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.fullsize import write_wavlm
from support.golden import GOLDEN, applied, load_golden, relative_error
from typer.testing import CliRunner

from focalcodec_jax import CheckpointError, load_pretrained
from focalcodec_jax.cli import app
from focalcodec_jax.config import PRESETS
from focalcodec_jax.convert import ImportedCheckpoint, import_checkpoint, mapping, verify
from focalcodec_jax.convert.mapping import Rule, translate
from focalcodec_jax.pretrained import parameter_shapes


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def as_v001(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename v0.0.2 tensors to v0.0.1."""
    halves = {"compressor": ("downscale", "focal_block"), "decompressor": ("focal_block", "upscale")}
    result = {}
    for name, tensor in tensors.items():
        for part, names in halves.items():
            for index, half in enumerate(names):
                head, _, tail = name.partition(f".{half}.")
                if head.startswith(f"{part}.layers.") and head.count(".") == 2:
                    name = f"{head}.{index}.{tail}"
        if "qkv_proj" in name:
            for part, piece in zip("qkv", np.split(tensor, 3), strict=True):
                result[name.replace("qkv", part)] = piece
        else:
            result[name] = tensor
    return result


@pytest.mark.parametrize("name", ["legacy_50hz", "legacy_12_5hz"])
def test_v001_to_v002_keeps_every_used_bit(name: str, tmp_path: Path):
    output = run("convert", "import", GOLDEN / name, "-o", tmp_path)
    assert "FocalCodec v0.0.1" in output
    assert "left out 2: final norm of WavLM" in output
    assert "left out 1: bit weights of the quantizer" in output
    back = as_v001(load_file(tmp_path / "model.safetensors"))
    original = load_file(GOLDEN / name / "model.safetensors")
    unused = {"encoder.encoder.norm.weight", "encoder.encoder.norm.bias", "quantizer.mask"}
    assert back.keys() == original.keys() - unused
    assert all(np.array_equal(back[key], original[key]) for key in back)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["decoder_config"]["input_dim"] == 32
    assert not {"input_channels", "padding"} & config["decoder_config"].keys()
    golden = load_golden(name)
    apply = applied(*load_pretrained(tmp_path))
    for case in golden.cases.values():
        np.testing.assert_array_equal(apply("sig_to_toks", case["sig"]), case["toks"])


@pytest.fixture
def small_presets(monkeypatch):
    """Add presets with the structure of published models in small sizes."""
    monkeypatch.setitem(PRESETS, "small", load_golden("offline_12_5hz").model.config)
    monkeypatch.setitem(PRESETS, "small_causal", load_golden("causal_4k_wavenext").model.config)


@pytest.mark.parametrize("old_names", [False, True])
def test_wavlm_of_hugging_face(old_names: bool, tmp_path: Path, small_presets):
    source = tmp_path / "wavlm"
    shutil.copytree(GOLDEN / "wavlm_hf", source)
    if old_names:
        tensors = load_file(source / "model.safetensors")
        prefix = "encoder.pos_conv_embed.conv."
        for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
            tensors[prefix + old] = tensors.pop(f"{prefix}parametrizations.weight.{new}")
        save_file(tensors, source / "model.safetensors")
    output = run("convert", "import", source, "-o", tmp_path / "codec", "--layers", 2, "--preset", "small")
    assert "WavLM (Hugging Face)" in output
    assert "randomly initialized, to be trained: compressor, decompressor, decoder" in output
    io = load_file(GOLDEN / "wavlm_hf/io.safetensors")
    model, variables = load_pretrained(tmp_path / "codec")
    assert relative_error(applied(model, variables)("sig_to_feats", io["sig"]), io["hidden_2"]) <= 1e-4
    assert model.config.compressor == PRESETS["small"].compressor


def test_wavlm_import_is_reproducible_and_follows_the_preset(small_presets):
    options: Any = {"preset": "small_causal", "layers": 2}
    first, again, other = (import_checkpoint(str(GOLDEN / "wavlm_hf"), seed=seed, **options) for seed in (0, 0, 1))
    kernels = [imported.variables["params"]["decoder"]["head"]["proj"]["kernel"] for imported in (first, again, other)]
    assert isinstance(first, ImportedCheckpoint)
    assert np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert first.model.config.causal
    assert first.model.config.encoder.dim == 32


def test_wavlm_that_is_not_large(tmp_path: Path):
    shutil.copytree(GOLDEN / "wavlm_hf", tmp_path / "base")
    path = tmp_path / "base/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"feat_extract_norm": "group", "do_stable_layer_norm": False}))
    with pytest.raises(CheckpointError, match="WavLM base model"):
        import_checkpoint(str(tmp_path / "base"))
    path.write_text(json.dumps(config | {"model_type": "hubert"}))
    with pytest.raises(CheckpointError, match="of a 'hubert' model, not of WavLM"):
        import_checkpoint(str(tmp_path / "base"))


def test_wavlm_with_fewer_layers_than_asked_for():
    with pytest.raises(CheckpointError, match=r"missing \(45\): encoder.encoder.layers.3"):
        import_checkpoint(str(GOLDEN / "wavlm_hf"), layers=6)


def test_sources_that_cannot_be_imported(tmp_path: Path):
    weights = shutil.copy(GOLDEN / "offline_25hz/model.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="give a preset") as caught:
        import_checkpoint(weights)
    assert caught.value.parameter == "preset"
    with pytest.raises(CheckpointError, match="wrongly shaped"):
        import_checkpoint(weights, preset="focalcodec_25hz")
    with pytest.raises(CheckpointError, match="describes the codec already; give no preset"):
        import_checkpoint(str(GOLDEN / "offline_25hz"), preset="focalcodec_25hz")
    with pytest.raises(CheckpointError, match="does not exist, and is not a hub name"):
        import_checkpoint("nowhere.safetensors")


@pytest.mark.large
def test_full_shape_wavlm_lands_in_the_50_hz_preset(tmp_path: Path):
    """Random weights in the shapes of WavLM-large, with two layers more than a codec keeps."""
    tensors = write_wavlm(tmp_path / "wavlm")
    source = tmp_path / "wavlm"
    run("convert", "import", source, "-o", tmp_path / "codec", "--preset", "focalcodec_50hz")
    model, variables = load_pretrained(tmp_path / "codec")
    assert model.config == PRESETS["focalcodec_50hz"]
    projection = tensors["feature_projection.projection.weight"]
    np.testing.assert_array_equal(variables["params"]["encoder"]["feature_proj"]["kernel"], projection.T)
    sig = np.random.default_rng(0).normal(size=(1, 16000)).astype(np.float32)
    assert applied(model, variables)("sig_to_toks", sig).shape == (1, 49)


# --- rules


@pytest.mark.parametrize("name", [*PRESETS, "golden"])
def test_the_rules_map_every_parameter_both_ways(name: str):
    config = load_golden("offline_options").model.config if name == "golden" else PRESETS[name]
    shapes = parameter_shapes(config)
    params = {path: np.empty(shape, np.bool_) for path, shape in shapes.items()}
    official = translate(mapping.TO_OFFICIAL, params)
    back = translate(mapping.OFFICIAL, official, shapes)
    assert {path: array.shape for path, array in back.items()} == shapes
    assert len(official) == len(params)


def test_a_rule_that_only_imports_has_no_inverse():
    with pytest.raises(ValueError, match="cannot be inverted"):
        Rule(("a", "b"), "c").inverted()


# --- verify


def test_verify_agrees_with_itself_and_tells_others_apart(tmp_path: Path):
    run("convert", "import", GOLDEN / "legacy_50hz", "-o", tmp_path / "same")
    output = run("convert", "verify", GOLDEN / "legacy_50hz", tmp_path / "same")
    assert "354 of 354 equal" in output
    assert "the two agree" in output
    result = CliRunner().invoke(app, ["convert", "verify", str(GOLDEN / "offline_50hz"), str(tmp_path / "same")])
    assert result.exit_code == 1
    assert "the two differ" in result.output


def test_verify_locates_the_stage(tmp_path: Path):
    shutil.copytree(GOLDEN / "offline_50hz", tmp_path / "changed")
    path = tmp_path / "changed/model.safetensors"
    tensors = load_file(path)
    tensors["decompressor.in_proj.bias"] = tensors["decompressor.in_proj.bias"] + 0.1
    save_file(tensors, path)
    sig = load_golden("offline_50hz").cases[5119]["sig"][0]
    report = verify(GOLDEN / "offline_50hz", tmp_path / "changed", sig)
    wrong = [stage.stage for stage in report.stages if stage.given_reference_input > 1e-4]
    assert (wrong, report.differing, report.agree) == (["decompressor"], 0, False)


def test_verify_refuses_what_cannot_be_compared():
    with pytest.raises(CheckpointError, match="their output sample rate in Hz is 16000 and 24000"):
        verify(str(GOLDEN / "offline_50hz"), str(GOLDEN / "causal_4k_wavenext"), np.zeros(1000, np.float32))
