"""Checkpoints in folders and on the hub, and errors about them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import hub as stand_in
from support.golden import CODECS, GOLDEN

from focalcodec_jax import CheckpointError, CodecConfig, ConfigError, FocalCodec, load_pretrained, save_pretrained
from focalcodec_jax.config import PRESETS
from focalcodec_jax.pretrained import parameter_shapes

REPOSITORY = "lucadellalib/focalcodec_50hz"


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize("name", CODECS)
def test_official_to_ours_to_official_keeps_every_bit(name: str, tmp_path: Path):
    model, variables = load_pretrained(GOLDEN / name)
    save_pretrained(tmp_path, model, variables, metadata={"source": name})
    written = load_file(tmp_path / "model.safetensors")
    if not name.startswith("legacy"):
        original = load_file(GOLDEN / name / "model.safetensors")
        assert written.keys() == original.keys()
        assert all(np.array_equal(written[key], original[key]) for key in original)
    again, variables_again = load_pretrained(tmp_path)
    assert again.config == model.config
    assert same(variables, variables_again)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata()["source"] == name
        assert file.metadata()["producer"].startswith("focalcodec_jax ")
    keys = set(json.loads((tmp_path / "config.json").read_text()))
    parts = ("encoder", "compressor", "quantizer", "decompressor", "decoder")
    assert keys == {f"{part}_{kind}" for part in parts for kind in ("name", "config")}


def test_parameter_counts_of_the_published_models():
    """Millions of parameters: encoder, compressor, decompressor, decoder."""
    published = {
        "focalcodec_50hz": (88.7, 18.3, 18.3, 16.8, 142.1),
        "focalcodec_25hz": (88.7, 19.3, 19.3, 16.8, 144.2),
        "focalcodec_12_5hz": (88.7, 19.9, 19.9, 16.8, 145.3),
        "focalcodec_50hz_65k_causal": (88.7, 42.6, 76.2, 41.5, 249.0),
        "focalcodec_50hz_4k_causal": (88.7, 42.6, 76.2, 41.5, 249.0),
        "focalcodec_50hz_2k_causal": (88.7, 42.6, 76.2, 41.5, 249.0),
    }
    assert published.keys() == PRESETS.keys()
    for name, expected in published.items():
        sizes = {path: int(np.prod(shape)) for path, shape in parameter_shapes(PRESETS[name]).items()}
        parts = ("encoder", "compressor", "decompressor", "decoder", "")
        counted = [sum(size for path, size in sizes.items() if path.startswith(part)) / 1e6 for part in parts]
        np.testing.assert_allclose(counted, expected, atol=0.05, err_msg=name)


def feats_and_lats(model: FocalCodec, variables: Any, sig: Any) -> Any:
    def steps(variables, sig):
        feats = model.apply(variables, sig, method="sig_to_feats")
        return feats, model.apply(variables, feats, method="feats_to_lats")

    return jax.jit(steps)(variables, sig)


def test_parameters_are_float32_for_any_compute_dtype():
    model, variables = load_pretrained(GOLDEN / "offline_50hz", dtype="bfloat16")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    sig = jax.numpy.asarray(load_file(GOLDEN / "offline_50hz/io.safetensors")["5119.sig"])
    feats, lats = feats_and_lats(model, variables, sig)
    assert (feats.dtype, lats.dtype) == (np.dtype("bfloat16"), np.float32)
    exact, _ = load_pretrained(GOLDEN / "offline_50hz")
    _, reference = feats_and_lats(exact, variables, sig)
    assert 0 < np.abs(lats - reference).max() < 0.2


# --- the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in hub and an empty cache. The client reads its environment on import, so its constants are replaced."""
    from huggingface_hub import constants

    with stand_in.serve({REPOSITORY: GOLDEN / "offline_50hz"}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_hub_name_and_its_short_form(hub):
    _, variables = load_pretrained(REPOSITORY)
    assert same(variables, load_pretrained(GOLDEN / "offline_50hz")[1])
    downloads = [request for request in hub.asked if request.startswith("GET") and "model.safetensors" in request]
    assert len(downloads) == 1
    load_pretrained("focalcodec_50hz", revision="main")
    downloads = [request for request in hub.asked if request.startswith("GET") and "model.safetensors" in request]
    assert len(downloads) == 1, "the second load uses the cache"


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("lucadellalib/nothing", None, "has no repository 'lucadellalib/nothing'"),
        (REPOSITORY, "v9", "has no revision 'v9'"),
        ("someone/empty", None, "lacks one of config.json"),
    ],
)
def test_missing_on_the_hub(hub, tmp_path, name, revision, message):
    hub.repositories["someone/empty"] = tmp_path
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(name, revision=revision)


def test_the_next_try_after_a_broken_download_succeeds(hub):
    hub.cut_after = 1000
    with pytest.raises(CheckpointError, match=REPOSITORY):
        load_pretrained(REPOSITORY)
    hub.cut_after = None
    load_pretrained(REPOSITORY)


def test_offline_cache_through_the_environment(tmp_path):
    """A user sets HF_ENDPOINT and HF_HOME, and later HF_HUB_OFFLINE without a hub."""
    script = (
        f"from focalcodec_jax import load_pretrained; print(load_pretrained({REPOSITORY!r})[0].config.token_rate_hz)"
    )

    def run(**environment: str) -> subprocess.CompletedProcess:
        env = os.environ | {"HF_HOME": str(tmp_path / "home")} | environment
        return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)

    with stand_in.serve({REPOSITORY: GOLDEN / "offline_50hz"}) as server:
        online = run(HF_ENDPOINT=server.url)
        assert online.stdout.strip() == "50.0", online.stderr
    offline = run(HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1")
    assert offline.stdout.strip() == "50.0", offline.stderr
    never = run(HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "other"))
    assert "CheckpointError" in never.stderr
    assert "not in the cache" in never.stderr


# --- errors about folders


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "offline_50hz" / name, tmp_path / name)
    return tmp_path


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_one_error_lists_all_wrong_tensors(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["surprise.weight"] = tensors.pop("decoder.head.proj.weight")
    tensors["decoder.head.proj.bias"] = tensors["decoder.head.proj.bias"][:-1].copy()
    tensors["compressor.out_proj.weight"] = tensors["compressor.out_proj.weight"][0].copy()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert "unmapped (1): surprise.weight" in message
    assert "missing (1): decoder.head.proj.weight" in message
    assert "wrongly shaped (2): compressor.out_proj.weight is (8,)" in message
    assert "decoder.head.proj.bias is (1025,)" in message


def test_doubled_tensor(folder: Path):
    tensors = load_file(GOLDEN / "legacy_50hz/model.safetensors")
    prefix = "encoder.encoder.layers.0.attention"
    tensors[f"{prefix}.qkv_proj.weight"] = np.zeros((96, 32), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"doubled \(1\): .*k_proj.weight and .*qkv_proj.weight"):
        load_pretrained(folder)


@pytest.mark.parametrize("size", [0, 5, 1000, 400_000])
def test_truncated_weights(folder: Path, size: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        load_pretrained(folder)


def test_unknown_configuration_keys(folder: Path):
    edit(folder, quantiser_name="BSQ", encoder_config={"dims": 3, "num_layers": 0})
    with pytest.raises(ConfigError) as caught:
        load_pretrained(folder)
    for problem in ("unknown key 'quantiser_name'", "unknown key dims", "num_layers: Input should be greater than 0"):
        assert problem in str(caught.value)


def test_parts_that_do_not_fit_together(folder: Path):
    edit(folder, quantizer_config={"codebook_size": 16})
    with pytest.raises(ConfigError, match=r"compressor.output_dim = log2\(codebook_size\) does not hold: 13 and 4"):
        load_pretrained(folder)


def test_other_architectures(folder: Path):
    with pytest.raises(ConfigError, match="of a 'wavlm' model, not of a FocalCodec"):
        load_pretrained(GOLDEN / "wavlm_hf")
    edit(folder, decoder_name="HiFiGAN")
    with pytest.raises(ConfigError, match="decoder_name is 'HiFiGAN', this package supports WaveNeXt and Vocos"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_pretrained(folder)


def test_invalid_names(folder: Path):
    with pytest.raises(CheckpointError, match="neither a local folder nor a hub name"):
        load_pretrained("no-such-thing")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        load_pretrained(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="contains no weights"):
        load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"contains no config\.json"):
        load_pretrained(folder)
    with pytest.raises(ConfigError, match="presets are focalcodec_50hz"):
        CodecConfig.preset("focalcodec_51hz")


def test_saving_variables_of_another_model(folder: Path, tmp_path: Path):
    model, variables = load_pretrained(folder)
    other = FocalCodec(load_pretrained(GOLDEN / "offline_wide")[0].config)
    with pytest.raises(CheckpointError, match="the variables do not match the model"):
        save_pretrained(tmp_path / "new", other, variables)
    assert not (tmp_path / "new").exists()
    del model


def test_a_failed_save_keeps_the_old_files(folder: Path, monkeypatch):
    model, variables = load_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(folder, model, variables)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
