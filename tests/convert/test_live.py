"""Parity with PyTorch: WavLM of transformers, pickled checkpoints, and single operations.

Run with `pytest -m live` in an environment with torch and transformers.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.golden import CODECS, GOLDEN, applied, load_golden, relative_error
from typer.testing import CliRunner

from focalcodec_jax import CheckpointError, load_pretrained, save_pretrained
from focalcodec_jax.cli import app
from focalcodec_jax.config import PRESETS
from focalcodec_jax.convert import import_checkpoint, verify
from focalcodec_jax.convert.files import read_pickled
from focalcodec_jax.nn import layers
from focalcodec_jax.nn.spectral import hann_window, inverse_frames, istft

pytestmark = pytest.mark.live


@pytest.fixture
def small_preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "small", load_golden("offline_12_5hz").model.config)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_wavlm_of_transformers(weights: str, tmp_path: Path, small_preset):
    """A random WavLM of unusual sizes, saved by transformers and imported here, has the same hidden states."""
    import torch
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=80,
        conv_dim=(24,) * 7,
        num_conv_pos_embeddings=31,
        num_conv_pos_embedding_groups=6,
        num_buckets=64,
        max_bucket_distance=100,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        layerdrop=0.0,
    )
    model = WavLMModel(config).eval()
    with torch.no_grad():
        layers: Any = model.encoder.layers
        for layer in layers:
            const: Any = layer.get_parameter("attention.gru_rel_pos_const")
            const.normal_(1, 0.5)
    source = tmp_path / "wavlm"
    model.save_pretrained(source)
    if weights != "model.safetensors":
        torch.save(model.state_dict(), source / weights)
        (source / "model.safetensors").unlink()
    sig = torch.randn(1, 30000)
    with torch.inference_mode():
        hidden = model(sig, output_hidden_states=True).hidden_states[3].numpy()
    arguments = ["convert", "import", str(source), "-o", str(tmp_path / "codec"), "--layers", "3", "--preset", "small"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    feats = applied(*load_pretrained(tmp_path / "codec"))("sig_to_feats", sig.numpy())
    assert relative_error(feats, hidden) <= 1e-5


def test_wavlm_of_microsoft(tmp_path: Path, small_preset):
    io = load_file(GOLDEN / "wavlm_unilm/io.safetensors")
    for layers_kept in (2, 3):
        imported = import_checkpoint(str(GOLDEN / "wavlm_unilm/WavLM-tiny.pt"), layers=layers_kept, preset="small")
        feats = applied(imported.model, imported.variables)("sig_to_feats", io["sig"])
        assert relative_error(feats, io[f"feats_layer{layers_kept}"]) <= 1e-4
        assert (f"layers after the first {layers_kept}" in imported.dropped) == (layers_kept < 3)


def test_base_models_are_refused(tmp_path: Path):
    import torch

    content = torch.load(GOLDEN / "wavlm_unilm/WavLM-tiny.pt", weights_only=True)
    content["cfg"] |= {"extractor_mode": "default", "layer_norm_first": False}
    torch.save(content, tmp_path / "WavLM-Base.pt")
    with pytest.raises(CheckpointError, match="WavLM base model"):
        import_checkpoint(str(tmp_path / "WavLM-Base.pt"))


def test_pickles_run_nothing(tmp_path: Path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "model.pt").write_bytes(pickle.dumps({"weight": Harmful()}))
    with pytest.raises(CheckpointError, match="truncated or contains more than weights"):
        read_pickled(tmp_path / "model.pt")
    assert not (tmp_path / "harm").exists()
    whole = (GOLDEN / "wavlm_unilm/WavLM-tiny.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated or contains more than weights"):
        read_pickled(tmp_path / "model.pt")


@pytest.mark.parametrize("taps", [1, 2, 7, 14, 512])
def test_same_padding_is_torchs(taps: int):
    import torch

    rng = np.random.default_rng(taps)
    x, kernel = rng.normal(size=(2, 60, 8)).astype(np.float32), rng.normal(size=(taps, 1, 8)).astype(np.float32)
    ours = layers.conv(layers.pad_same(jnp.asarray(x), taps), jnp.asarray(kernel), groups=8)
    weight = torch.from_numpy(kernel).permute(2, 1, 0)
    theirs = torch.nn.functional.conv1d(torch.from_numpy(x).mT, weight, padding="same", groups=8).mT
    assert relative_error(np.asarray(ours), theirs.numpy()) <= 1e-5


def test_gelu_is_torchs():
    import torch

    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    theirs = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), theirs, atol=1e-6)


def test_istft_is_torchs():
    """Compared away from the edges, which torch trims differently."""
    import torch

    rng = np.random.default_rng(0)
    magnitude, phase = np.exp(rng.normal(size=(1, 30, 513))), rng.uniform(-np.pi, np.pi, size=(1, 30, 513))
    ours = istft(inverse_frames(jnp.asarray(magnitude, jnp.float32), jnp.asarray(phase, jnp.float32)), 320)[0]
    spectrum = torch.from_numpy(magnitude * np.exp(1j * phase)).mT
    window = torch.from_numpy(hann_window(1024).astype(np.float64))
    theirs = torch.istft(spectrum, 1024, 320, window=window, center=True)[0].numpy()
    offset = 512 - 352  # the two drop different numbers of samples at the start
    inner = slice(1024, 8000)
    np.testing.assert_allclose(ours[offset:][inner], theirs[inner], atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", CODECS)
def test_the_original_loads_what_we_save_and_gives_the_same_tokens(name: str, tmp_path: Path):
    pytest.importorskip("focalcodec", reason="the PyTorch original is not installed")
    model, variables = load_pretrained(GOLDEN / name)
    save_pretrained(tmp_path, model, variables)
    sig = load_golden(name).cases[max(load_golden(name).cases)]["sig"][0]
    report = verify(str(GOLDEN / name), str(tmp_path), sig, live=True)
    assert report.agree
    assert report.differing == 0
