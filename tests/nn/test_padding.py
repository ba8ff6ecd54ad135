"""A padded batch gives each item what that item gives alone, whatever the padding holds."""

import numpy as np
import pytest
from support.golden import CODECS, load_golden

from focalcodec_jax.nn import lengths as count

SAMPLES = (1, 1001, 12345)
ARCHITECTURES = [name for name in CODECS if not name.startswith("legacy") and name != "causal_4k_wavenext"]
"""Golden models whose structure differs; the others repeat one of these in another key layout or with other weights."""


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(7)


def batch(items: list[np.ndarray], longest: int, rng: np.random.Generator, draw) -> np.ndarray:
    """Items of unlike length in one array, noise after their ends."""
    padded = draw(rng, (len(items), longest, *items[0].shape[1:]))
    for row, item in zip(padded, items, strict=True):
        row[: len(item)] = item
    return padded


def noise(rng, shape):
    return 3 * rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_encode_and_decode(name: str, rng):
    golden = load_golden(name)
    config = golden.model.config
    sigs = [0.3 * noise(rng, samples) for samples in SAMPLES]
    toks = [golden.apply("sig_to_toks", sig[None])[0] for sig in sigs]
    decoded = [golden.apply("toks_to_sig", item[None])[0] for item in toks]
    assert len({tuple(item) for item in toks}) == len(toks)

    def draw_tokens(rng, shape):
        return rng.integers(config.quantizer.codebook_size, size=shape).astype(np.int32)

    longest = max(SAMPLES) + 777
    padded = golden.apply("sig_to_toks", batch(sigs, longest, rng, noise), np.array(SAMPLES))
    sizes = count.samples_to_tokens(config, np.array(SAMPLES))
    assert [len(item) for item in toks] == sizes.tolist()
    for row, item in zip(padded, toks, strict=True):
        np.testing.assert_array_equal(row[: len(item)], item)

    most = count.samples_to_tokens(config, longest)
    sound = golden.apply("toks_to_sig", batch(toks, most, rng, draw_tokens), sizes)
    for row, item in zip(sound, decoded, strict=True):
        np.testing.assert_allclose(row[: len(item)], item, atol=1e-5)
        assert not row[len(item) :].any(), "past an item's end there is silence"


@pytest.mark.parametrize("name", ["offline_25hz", "offline_options", "causal_ragged", "causal_2k_vocos"])
def test_whole_codec(name: str, rng):
    golden = load_golden(name)
    sigs = [0.3 * noise(rng, samples) for samples in (700, 3001)]
    alone = [golden.apply("__call__", sig[None]) for sig in sigs]
    toks, codes, decoded = golden.apply("__call__", batch(sigs, 4000, rng, noise), np.array([700, 3001]))
    for row, (own_toks, own_codes, own_decoded) in enumerate(alone):
        tokens, samples = own_toks.shape[1], own_decoded.shape[1]
        np.testing.assert_array_equal(toks[row, :tokens], own_toks[0])
        np.testing.assert_array_equal(codes[row, :tokens], own_codes[0])
        np.testing.assert_allclose(decoded[row, :samples], own_decoded[0], atol=1e-5)
        assert not decoded[row, samples:].any()
