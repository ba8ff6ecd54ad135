"""Each item of a padded batch gives the same result as the item by itself, for any content of the padding."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
import pytest
from support.golden import CODECS, load_golden

from focalcodec_jax.nn import lengths as count

SAMPLES = (1, 1001, 12345)
ARCHITECTURES = [name for name in CODECS if not name.startswith("legacy") and name != "causal_4k_wavenext"]
"""Golden models with different structures. The others repeat one of these with another key layout or other weights."""


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(7)


def batch(items: Sequence[np.ndarray], longest: int, rng: np.random.Generator, draw) -> np.ndarray:
    """Items of different lengths in one array, with noise after their ends."""
    padded = draw(rng, (len(items), longest, *items[0].shape[1:]))
    for row, item in zip(padded, items, strict=True):
        row[: len(item)] = item
    return padded


def noise(rng, shape):
    return 3 * rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_encode_and_decode(name: str, rng):
    golden = load_golden(name)
    config, apply, variables = golden.model.config, golden.model.apply, golden.variables
    own = jax.jit(partial(own_roundtrip, apply))
    sigs = [0.3 * noise(rng, samples) for samples in SAMPLES]
    roundtrips = [jax.tree.map(np.asarray, own(variables, sig[None])) for sig in sigs]
    toks, decoded = zip(*[(toks[0], sig[0]) for toks, sig in roundtrips], strict=True)
    assert len({tuple(item) for item in toks}) == len(toks)

    def draw_tokens(rng, shape):
        return rng.integers(config.quantizer.codebook_size, size=shape).astype(np.int32)

    longest = max(SAMPLES) + 777
    sizes = count.samples_to_tokens(config, np.array(SAMPLES))
    assert [len(item) for item in toks] == sizes.tolist()
    most = count.samples_to_tokens(config, longest)
    padded, sound = jax.jit(partial(padded_encode_and_decode, apply))(
        variables, batch(sigs, longest, rng, noise), np.array(SAMPLES), batch(toks, most, rng, draw_tokens), sizes
    )
    for row, item in zip(np.asarray(padded), toks, strict=True):
        np.testing.assert_array_equal(row[: len(item)], item)
    for row, item in zip(np.asarray(sound), decoded, strict=True):
        np.testing.assert_allclose(row[: len(item)], item, atol=1e-5)
        assert not row[len(item) :].any(), "audio after an item's end must be silent"


def own_roundtrip(apply, variables, sig):
    """The tokens of an unpadded batch, and the audio decoded from them."""
    toks = apply(variables, sig, method="sig_to_toks")
    return toks, apply(variables, toks, method="toks_to_sig")


def padded_encode_and_decode(apply, variables, sig, samples, toks, tokens):
    """Encode a padded batch of audio and decode a padded batch of tokens, in one program."""
    encoded = apply(variables, sig, samples, method="sig_to_toks")
    return encoded, apply(variables, toks, tokens, method="toks_to_sig")


@pytest.mark.parametrize("name", ["offline_25hz", "offline_options", "causal_ragged", "causal_2k_vocos"])
def test_whole_codec(name: str, rng):
    """Compiled without optimisation: the test above compares the same steps with it."""
    golden = load_golden(name)
    sigs = [0.3 * noise(rng, samples) for samples in (700, 3001)]
    alone = [golden.apply("__call__", sig[None]) for sig in sigs]
    toks, codes, decoded = golden.apply("__call__", batch(sigs, 4000, rng, noise), np.array([700, 3001]))
    for row, (item_toks, item_codes, item_decoded) in enumerate(alone):
        tokens, samples = item_toks.shape[1], item_decoded.shape[1]
        np.testing.assert_array_equal(toks[row, :tokens], item_toks[0])
        np.testing.assert_array_equal(codes[row, :tokens], item_codes[0])
        np.testing.assert_allclose(decoded[row, :samples], item_decoded[0], atol=1e-5)
        assert not decoded[row, samples:].any()
