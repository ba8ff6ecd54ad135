"""Every stage agrees with the PyTorch original, both on the original's input and end to end.

Each reference case is one program, compiled with the optimisations that users' programs have.
"""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.compiling import OPTIMISED
from support.golden import GOLDEN, Golden, load_golden, optimised, relative_error

from focalcodec_jax.nn import bsq, voice

BLOCK, WHOLE, AUDIO, NEAR_ZERO = 1e-5, 1e-4, 1e-4, 1e-5
STAGES = (
    ("sig_to_lats", ["sig_to_feats", "feats_to_lats"]),
    ("sig_to_toks", ["sig_to_feats", "feats_to_lats", "lats_to_toks"]),
    ("toks_to_qfeats", ["toks_to_codes", "codes_to_qfeats"]),
    ("toks_to_sig", ["toks_to_codes", "codes_to_qfeats", "feats_to_sig"]),
)
"""Compositions and the elementary steps that they stand for."""


@cache
def stages(name: str, length: int) -> dict[str, np.ndarray]:
    """The outputs of every stage for one reference case.

    A stage runs on a batch: first the reference's input, then the output of the stage before it, so that one program
    gives both comparisons. A decoder also takes the frames of voice conversion where the case has them.
    """
    golden = load_golden(name)
    model = golden.model

    def run(variables, case):
        def apply(method, *inputs):
            return model.apply(variables, jnp.concatenate(inputs), method=method)

        feats = apply("sig_to_feats", case["sig"])
        lats = apply("feats_to_lats", case["feats"], feats)
        toks = apply("lats_to_toks", case["lats"], lats[1:])
        codes = apply("toks_to_codes", case["toks"])
        qfeats = apply("codes_to_qfeats", case["codes"], codes)
        frames = [case["qfeats"], qfeats[1:]]
        if "matching_set" in case:
            frames.append(voice.nearest(case["qfeats"], case["matching_set"], k=4))
        return {
            "feats": feats,
            "lats": lats,
            "toks": toks,
            "codes": codes,
            "lats_to_codes": apply("lats_to_codes", case["lats"]),
            "codes_to_toks": apply("codes_to_toks", case["codes"]),
            "qfeats": qfeats,
            "sig": apply("feats_to_sig", *frames),
        }

    case = {key: jnp.asarray(array) for key, array in golden.cases[length].items() if "stream" not in key}
    return jax.tree.map(np.asarray, optimised(run)(golden.variables, case))


def test_each_stage_given_the_reference_input(golden: Golden):
    for length, case in golden.cases.items():
        out = stages(golden.name, length)
        assert relative_error(out["feats"], case["feats"]) <= BLOCK
        assert relative_error(out["lats"][:1], case["lats"]) <= BLOCK
        assert relative_error(out["qfeats"][:1], case["qfeats"]) <= BLOCK
        assert np.abs(out["sig"][:1] - case["sig_out"]).max() <= AUDIO
        np.testing.assert_array_equal(out["toks"][:1], case["toks"])
        np.testing.assert_array_equal(out["codes_to_toks"], case["toks"])
        np.testing.assert_allclose(out["lats_to_codes"], case["codes"], rtol=1e-7)
        np.testing.assert_allclose(out["codes"], case["codes"], rtol=1e-7)


def test_end_to_end(golden: Golden):
    for length, case in golden.cases.items():
        out = stages(golden.name, length)
        assert relative_error(out["lats"][1:], case["lats"]) <= WHOLE
        sure = (np.abs(case["lats"]) > NEAR_ZERO).all(axis=-1)
        assert sure.all(), f"{golden.name} {length}: golden files must not hold a latent so close to zero"
        np.testing.assert_array_equal(out["toks"][1:], case["toks"])
        assert np.abs(out["sig"][1:2] - case["sig_out"]).max() <= AUDIO


def test_voice_conversion(golden: Golden):
    cases = {length: case for length, case in golden.cases.items() if "vc_sig_out" in case}
    assert cases or golden.name.startswith("legacy")
    for length, case in cases.items():
        assert np.abs(stages(golden.name, length)["sig"][2:] - case["vc_sig_out"]).max() <= AUDIO


@pytest.mark.parametrize(("whole", "steps"), STAGES, ids=[whole for whole, _ in STAGES])
@pytest.mark.parametrize("name", ["offline_12_5hz", "causal_ragged"])
def test_compositions_trace_to_their_steps(name: str, whole: str, steps: list[str]):
    """The end-to-end test runs the steps one after another. The model's compositions trace to the same program."""
    model, variables = load_golden(name).model, load_golden(name).variables

    def in_steps(variables, x):
        for step in steps:
            x = model.apply(variables, x, method=step)
        return x

    x = np.zeros((1, 4000), np.float32) if whole.startswith("sig") else np.zeros((1, 9), np.int32)
    expected = jax.make_jaxpr(in_steps)(variables, x)
    found = jax.make_jaxpr(lambda variables, x: model.apply(variables, x, method=whole))(variables, x)
    assert str(found) == str(expected)


def test_programs_are_optimised(tmp_path: Path):
    """Options of one program prevail over XLA_FLAGS, and lead to other machine code."""
    plain = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    unoptimised, sizes = [], []
    factor = np.random.default_rng().random()  # a new program each time, which no cache holds
    for number, options in enumerate([OPTIMISED, plain]):
        folder = tmp_path / str(number)
        program = jax.jit(lambda x: factor * x + jnp.abs(x), compiler_options={**options, "xla_dump_to": str(folder)})
        program.lower(jnp.zeros(4096)).compile()
        (used,) = folder.glob("*.debug_options")
        unoptimised.append("xla_backend_optimization_level: 0" in used.read_text())
        sizes.append(sum(path.stat().st_size for path in folder.glob("*.o")))
    assert unoptimised == [False, True]
    assert sizes[0] != sizes[1]


def test_whole_codec_keeps_the_duration():
    golden = load_golden("causal_ragged")
    apply = optimised(lambda variables, sig: golden.model.apply(variables, sig))
    for case in golden.cases.values():
        toks, codes, sig = jax.tree.map(np.asarray, apply(golden.variables, case["sig"]))
        np.testing.assert_array_equal(toks, case["toks"])
        np.testing.assert_allclose(codes, case["codes"], rtol=1e-7)
        samples = -(-case["sig"].shape[1] * 480 // 320)  # 16 to 24 kHz
        assert sig.shape == (1, samples)
        assert np.abs(sig - case["sig_out"][:, :samples]).max() <= AUDIO


@pytest.mark.parametrize("samples", [1, 2, 79, 80, 399, 400, 401])
def test_shortest_inputs(samples: int):
    """Even a single sample gives one frame and one token."""
    rng = np.random.default_rng(samples)
    sig = rng.normal(size=(1, samples)).astype(np.float32)
    for name in ("offline_12_5hz", "causal_2k_vocos"):
        toks, _, decoded = load_golden(name).apply("__call__", sig)
        assert toks.shape[1] >= 1
        assert np.isfinite(decoded).all()
        assert decoded.shape == (1, samples)


@pytest.mark.parametrize("name", ["bsq13", "bsq8"])
def test_straight_through_gradient(name: str):
    golden = {k.split(".", 1)[1]: v for k, v in load_file(GOLDEN / "bsq_train.safetensors").items() if name in k}

    def weighted(x):
        codes, toks = bsq.quantize(bsq.normalize(x))
        return (golden["w"] * codes).sum(), (codes, toks)

    (_, (codes, toks)), gradient = optimised(jax.value_and_grad(weighted, has_aux=True))(jnp.asarray(golden["x"]))
    np.testing.assert_array_equal(toks, golden["indices"])
    np.testing.assert_allclose(codes, golden["quantized"], rtol=1e-6)
    assert relative_error(np.asarray(gradient), golden["grad_ste"]) <= 1e-4
