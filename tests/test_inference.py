"""`Codec`: inputs of any lengths, no recompilation for similar lengths, errors, and several devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.golden import GOLDEN, applied, load_golden

from focalcodec_jax import AudioError, Codec, FocalCodecError, TokenError
from focalcodec_jax.files import ASSETS, SAMPLE_RECORDING
from focalcodec_jax.inference import Axis
from focalcodec_jax.nn import lengths as count
from focalcodec_jax.pretrained import DEMO
from focalcodec_jax.recordings import audio

SIZES = (1, 399, 5119, 12345, 12344, 5000, 31999)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.from_pretrained(GOLDEN / "offline_50hz")


@pytest.fixture(scope="module")
def sigs() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [0.1 * rng.normal(size=size).astype(np.float32) for size in SIZES]


def test_the_demo_codec_reconstructs_speech():
    """The demo codec is small, and its output is close to a recording outside its training data."""
    from focalcodec_jax.train.losses import log_mel
    from focalcodec_jax.train.sections import MelConfig

    demo, sig = Codec.from_pretrained(), audio.read(SAMPLE_RECORDING)
    (toks,) = demo.encode(sig, 16000)
    (decoded,) = demo.decode(toks)
    log_mels, reference = (
        np.asarray(log_mel(jnp.asarray(x[None, : len(decoded)]), MelConfig(), 16000)) for x in (decoded, sig)
    )
    assert len(set(toks.tolist())) > 200
    assert np.abs(log_mels - reference).mean() < 1.0
    assert np.corrcoef(log_mels.ravel(), reference.ravel())[0, 1] > 0.9
    assert (ASSETS / DEMO / "model.safetensors").stat().st_size < 8e6


def test_list_equals_one_by_one_equals_the_model(codec: Codec, sigs):
    together = codec.encode(sigs, 16000)
    apply = applied(codec.model, codec.variables)
    for toks, sig in zip(together, sigs, strict=True):
        np.testing.assert_array_equal(toks, codec.encode(sig, 16000)[0])
        assert toks.dtype == np.int32
    np.testing.assert_array_equal(together[2], apply("sig_to_toks", sigs[2][None])[0])
    decoded = codec.decode(together)
    for sig, toks in zip(decoded, together, strict=True):
        assert len(sig) == count.tokens_to_samples(codec.config, len(toks))
        np.testing.assert_allclose(sig, codec.decode(toks)[0], atol=1e-5)
    np.testing.assert_allclose(decoded[2], apply("toks_to_sig", together[2][None])[0], atol=1e-5)
    qfeats = codec.qfeats(together[2])[0]
    np.testing.assert_allclose(qfeats, apply("toks_to_qfeats", together[2][None])[0], rtol=1e-4, atol=1e-5)


def test_similar_lengths_compile_nothing(codec: Codec):
    compiled: list[str] = []
    rng = np.random.default_rng(0)
    codec.decode(codec.encode(rng.normal(size=9000).astype(np.float32), 16000))

    def listen(event: str, duration_secs: float, **_: str | int):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        codec.decode(codec.encode(rng.normal(size=8500).astype(np.float32), 16000))
        assert compiled == []
        codec.encode(rng.normal(size=90_000).astype(np.float32), 16000)
        assert len(compiled) == 1, "the listener must receive events"
    finally:
        jax.monitoring.clear_event_listeners()


def test_bucket_lengths():
    axis = Axis(320, 16000)
    sizes = [axis.bucket(samples) for samples in range(1, 200_000, 77)]
    assert all(padded >= samples for padded, samples in zip(sizes, range(1, 200_000, 77), strict=True))
    assert len(set(sizes)) <= 19
    assert all(padded <= 1.3 * samples + 320 * 16 for padded, samples in zip(sizes, range(1, 200_000, 77), strict=True))


def test_resamples(codec: Codec):
    seconds = np.arange(48000) / 48000
    sig = (0.3 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    (toks,) = codec.encode(sig, 48000)
    assert len(toks) == 49
    assert len(codec.encode(np.array([0.1], np.float32), 8000)[0]) == 1


def test_voice_conversion_equals_the_reference(codec: Codec):
    """Padded frames of the speech and of the matching set are never chosen as neighbours."""
    golden = load_golden("offline_50hz")
    case = golden.cases[12345]
    other = golden.cases[5119]["sig"][0]
    (converted,) = codec.convert_voice(case["sig"][0], [other], 16000, k=4)
    from focalcodec_jax.nn import voice

    matching = golden.apply("toks_to_qfeats", golden.cases[5119]["toks"])[0]
    frames = voice.nearest(jax.numpy.asarray(case["qfeats"]), jax.numpy.asarray(matching))
    np.testing.assert_allclose(converted, golden.apply("feats_to_sig", frames)[0], atol=1e-4)
    with pytest.raises(AudioError, match="fewer than k = 4"):
        codec.convert_voice(case["sig"][0], [np.zeros(500, np.float32)], 16000)


@pytest.mark.parametrize(
    ("sig", "message"),
    [
        (np.zeros(0, np.float32), "recording 0 is empty"),
        (np.array([0.1, np.nan, np.inf]), "contains 2 samples that are NaN or infinite, the first at sample 1"),
        (np.zeros(100, np.int16), "contains int16 samples; give floats"),
        ([np.zeros((2, 100), np.float32)], r"has shape \(2, 100\); give one channel"),
    ],
)
def test_bad_audio(codec: Codec, sig, message: str):
    with pytest.raises(AudioError, match=message):
        codec.encode(sig, 16000)


def test_bad_sample_rate(codec: Codec):
    with pytest.raises(AudioError, match="sample rate is 0 Hz"):
        codec.encode(np.zeros(100, np.float32), 0)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([3, 8192]), "has token 8192 at position 1; tokens of this codec are 0 to 8191"),
        (np.array([-1]), "has token -1 at position 0"),
        (np.array([0.5]), "contains float64 values; tokens are integers"),
        (np.array([], np.int32), "give at least one token"),
    ],
)
def test_bad_tokens(codec: Codec, tokens: np.ndarray, message: str):
    with pytest.raises(TokenError, match=message):
        codec.decode(tokens)


def test_missing_device():
    with pytest.raises(FocalCodecError, match="this machine has no tpu"):
        Codec.from_pretrained(device="tpu")


def test_eight_devices_give_what_one_gives(tmp_path: Path, codec: Codec, sigs):
    script = """
import sys, numpy as np, jax
from focalcodec_jax import Codec
folder, work = sys.argv[1:]
assert jax.device_count() == 8
codec = Codec.from_pretrained(folder)
sigs = list(np.load(work + "/sigs.npz").values())
toks = codec.encode(sigs, 16000)
np.savez(work + "/toks.npz", *toks)
np.savez(work + "/decoded.npz", *codec.decode(toks))
"""
    np.savez(tmp_path / "sigs.npz", *sigs)
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script, GOLDEN / "offline_50hz", tmp_path], env=env, check=True)
    toks, decoded = np.load(tmp_path / "toks.npz"), np.load(tmp_path / "decoded.npz")
    expected = codec.encode(sigs, 16000)
    for key, expected_toks, expected_sig in zip(toks, expected, codec.decode(expected), strict=True):
        np.testing.assert_array_equal(toks[key], expected_toks)
        np.testing.assert_allclose(decoded[key], expected_sig, atol=1e-5)
