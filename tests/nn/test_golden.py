"""Every stage equals the PyTorch original's, fed with the original's input and end to end."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.golden import GOLDEN, Golden, load_golden, relative_error

from focalcodec_jax.nn import bsq, voice

BLOCK, WHOLE, AUDIO, NEAR_ZERO = 1e-5, 1e-4, 1e-4, 1e-5


def test_each_stage_given_the_reference_input(golden: Golden):
    for case in golden.cases.values():
        assert relative_error(golden.apply("sig_to_feats", case["sig"]), case["feats"]) <= BLOCK
        assert relative_error(golden.apply("feats_to_lats", case["feats"]), case["lats"]) <= BLOCK
        assert relative_error(golden.apply("codes_to_qfeats", case["codes"]), case["qfeats"]) <= BLOCK
        assert np.abs(golden.apply("feats_to_sig", case["qfeats"]) - case["sig_out"]).max() <= AUDIO
        np.testing.assert_array_equal(golden.apply("lats_to_toks", case["lats"]), case["toks"])
        np.testing.assert_array_equal(golden.apply("codes_to_toks", case["codes"]), case["toks"])
        np.testing.assert_allclose(golden.apply("lats_to_codes", case["lats"]), case["codes"], rtol=1e-7)
        np.testing.assert_allclose(golden.apply("toks_to_codes", case["toks"]), case["codes"], rtol=1e-7)


def test_end_to_end(golden: Golden):
    for length, case in golden.cases.items():
        lats = golden.apply("sig_to_lats", case["sig"])
        assert relative_error(lats, case["lats"]) <= WHOLE
        sure = (np.abs(case["lats"]) > NEAR_ZERO).all(axis=-1)
        assert sure.all(), f"{golden.name} {length}: the golden files hold no latent this close to zero"
        np.testing.assert_array_equal(golden.apply("lats_to_toks", lats), case["toks"])
        assert np.abs(golden.apply("toks_to_sig", case["toks"]) - case["sig_out"]).max() <= AUDIO


def test_whole_codec_keeps_the_duration():
    golden = load_golden("causal_ragged")
    for case in golden.cases.values():
        toks, codes, sig = golden.apply("__call__", case["sig"])
        np.testing.assert_array_equal(toks, case["toks"])
        np.testing.assert_allclose(codes, case["codes"], rtol=1e-7)
        samples = -(-case["sig"].shape[1] * 480 // 320)  # 16 to 24 kHz
        assert sig.shape == (1, samples)
        assert np.abs(sig - case["sig_out"][:, :samples]).max() <= AUDIO


def test_voice_conversion(golden: Golden):
    cases = [case for case in golden.cases.values() if "vc_sig_out" in case]
    assert cases or golden.name.startswith("legacy")
    for case in cases:
        converted = voice.nearest(jnp.asarray(case["qfeats"]), jnp.asarray(case["matching_set"]), k=4)
        sig = golden.apply("feats_to_sig", converted)
        assert np.abs(sig - case["vc_sig_out"]).max() <= AUDIO


@pytest.mark.parametrize("samples", [1, 2, 79, 80, 399, 400, 401])
def test_shortest_inputs(samples: int):
    """One sample is one frame is one token."""
    rng = np.random.default_rng(samples)
    sig = rng.normal(size=(1, samples)).astype(np.float32)
    for name in ("offline_12_5hz", "causal_2k_vocos"):
        toks, _, decoded = load_golden(name).apply("__call__", sig)
        assert toks.shape[1] >= 1
        assert np.isfinite(decoded).all()
        assert decoded.shape == (1, samples)


@pytest.mark.parametrize("name", ["bsq13", "bsq8"])
def test_straight_through_gradient(name: str):
    import jax

    golden = {k.split(".", 1)[1]: v for k, v in load_file(GOLDEN / "bsq_train.safetensors").items() if name in k}

    def weighted(x):
        codes, toks = bsq.quantize(bsq.normalize(x))
        return (golden["w"] * codes).sum(), (codes, toks)

    (_, (codes, toks)), gradient = jax.value_and_grad(weighted, has_aux=True)(jnp.asarray(golden["x"]))
    np.testing.assert_array_equal(toks, golden["indices"])
    np.testing.assert_allclose(codes, golden["quantized"], rtol=1e-6)
    assert relative_error(np.asarray(gradient), golden["grad_ste"]) <= 1e-4
