"""Nearest neighbours, computed in blocks and with padding."""

import jax.numpy as jnp
import numpy as np
import pytest

from focalcodec_jax.nn import voice


def by_sorting(queries: np.ndarray, points: np.ndarray, k: int) -> np.ndarray:
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, points)]
    order = np.argsort(-(unit[0] @ unit[1].T), axis=-1, kind="stable")[:, :k]
    return points[order].mean(axis=1)


@pytest.mark.parametrize(("points", "block"), [(5, 4096), (64, 64), (65, 16), (1000, 7)])
def test_equals_sorting_for_any_block_size(points: int, block: int, monkeypatch):
    monkeypatch.setattr(voice, "_BLOCK", block)
    rng = np.random.default_rng(points)
    queries, matching = rng.normal(size=(2, 9, 16)).astype(np.float32), rng.normal(size=(points, 16)).astype(np.float32)
    found = voice.nearest(jnp.asarray(queries), jnp.asarray(matching), k=4)
    expected = by_sorting(queries.reshape(-1, 16), matching, 4).reshape(queries.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_padded_frames_are_never_chosen():
    rng = np.random.default_rng(0)
    queries, matching = rng.normal(size=(1, 9, 16)).astype(np.float32), rng.normal(size=(30, 16)).astype(np.float32)
    real = np.arange(30) % 3 != 0
    matching[~real] = queries[0, 0]  # padding would be the nearest neighbour
    found = voice.nearest(jnp.asarray(queries), jnp.asarray(matching), jnp.asarray(real), k=2)
    np.testing.assert_allclose(found[0], by_sorting(queries[0], matching[real], 2), rtol=1e-5, atol=1e-6)


def test_too_few_points():
    with pytest.raises(ValueError, match="contains 3 frames, fewer than k = 4"):
        voice.nearest(jnp.zeros((1, 1, 8)), jnp.zeros((3, 8)), k=4)
