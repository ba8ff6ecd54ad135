"""Voice conversion by nearest neighbours (Baas et al., "Voice conversion with just nearest neighbors", 2023)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from focalcodec_jax.nn import bsq

_BLOCK = 4096  # number of frames of the matching set that are compared at once; this limits memory


def nearest(
    qfeats: Float[Array, "batch frames dim"],
    matching_set: Float[Array, "points dim"],
    real: Bool[Array, " points"] | None = None,
    *,
    k: int = 4,
) -> Float[Array, "batch frames dim"]:
    """Replace each frame by the mean of its `k` nearest neighbours in a matching set, by cosine distance.

    Args:
        qfeats: frames of the speech to convert.
        matching_set: frames of the target voice.
        real: False on the padding of the matching set, which is never chosen. At least `k` frames must be real.
        k: number of neighbours to average.

    Returns:
        The converted frames, in the shape of `qfeats`.

    Raises:
        ValueError: the matching set holds fewer than `k` frames.
    """
    if matching_set.shape[0] < k:
        raise ValueError(f"the matching set contains {matching_set.shape[0]} frames, fewer than k = {k}")
    points = matching_set.shape[0]
    if real is None:
        real = jnp.ones(points, bool)
    query = bsq.normalize(qfeats.reshape(-1, qfeats.shape[-1]))
    block = min(_BLOCK, points)
    padding = -points % block
    blocks = jnp.pad(bsq.normalize(matching_set), ((0, padding), (0, 0))).reshape(-1, block, query.shape[-1])
    real_blocks = jnp.pad(real, (0, padding)).reshape(-1, block)

    def merge(best, block_number):
        scores, indices = best
        similarity = jnp.einsum("qd,pd->qp", query, blocks[block_number], precision=lax.Precision.HIGHEST)
        similarity = jnp.where(real_blocks[block_number][None], similarity, -jnp.inf)
        candidates = jnp.concatenate([scores, similarity], axis=1)
        here = jnp.broadcast_to((block_number * block + jnp.arange(block))[None], similarity.shape)
        scores, chosen = lax.top_k(candidates, k)
        return (scores, jnp.take_along_axis(jnp.concatenate([indices, here], axis=1), chosen, axis=1)), None

    start = (jnp.full((query.shape[0], k), -jnp.inf), jnp.zeros((query.shape[0], k), jnp.int32))
    (_, indices), _ = lax.scan(merge, start, jnp.arange(blocks.shape[0]))
    return matching_set[indices].mean(axis=1).reshape(qfeats.shape)
