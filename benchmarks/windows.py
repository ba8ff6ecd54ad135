"""How many tokens of a long recording change when it is encoded in windows instead of whole.

    python benchmarks/windows.py FOLDER --checkpoint NAME_OR_FOLDER --minutes 1 5 10 --context 2 4 8

The recording is the concatenation of the files in the folder, repeated to the given length. The memory of attention
grows with the square of the length. This script computes attention over blocks of queries, which gives the same sums.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from rich.console import Console
from rich.table import Table

from focalcodec_jax import Codec
from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.nn import lengths, wavlm
from focalcodec_jax.nn.layers import linear, precision
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.readers import codec_windows

BLOCK_FRAMES = 500


class DistanceBias(wavlm.RelativeBias):
    """The bias by distance, (heads, 2·frames − 1), instead of by pairs of frames."""

    @nn.compact
    def __call__(self, frames: int) -> jax.Array:
        shape = (self.config.num_buckets, self.config.num_heads)
        table = self.param("embedding", nn.initializers.normal(0.02), shape, jnp.float32)
        far = self.config.max_distance
        buckets = wavlm.relative_position_bucket(np.arange(-far, far + 1), self.config.num_buckets, far)
        return table[jnp.asarray(buckets)[jnp.clip(jnp.arange(-frames + 1, frames), -far, far) + far]].T


class BlockedAttention(wavlm.Attention):
    """Attention that is computed for one block of queries at a time."""

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, mask: jax.Array | None) -> jax.Array:
        batch, frames, dim = x.shape
        heads = self.config.num_heads
        split = (batch, frames, heads, dim // heads)
        projected = jnp.split(linear(3 * dim, self.dtype, "qkv_proj")(x), 3, axis=-1)
        q, k, v = (part.reshape(split).transpose(0, 2, 1, 3) for part in projected)
        gate = self.gate(x.reshape(split))

        def block(first: jax.Array) -> jax.Array:
            queries = first + jnp.arange(BLOCK_FRAMES)
            of_block = jnp.clip(queries, 0, frames - 1)
            scores = jnp.einsum(
                "bhqd,bhkd->bhqk", q[:, :, of_block] / (dim // heads) ** 0.5, k, precision=precision(self.dtype)
            )
            distance = jnp.arange(frames)[None] - of_block[:, None] + frames - 1
            scores = scores + gate[:, :, of_block, None] * bias[:, distance]
            if mask is not None:
                scores = jnp.where(mask[:, :, of_block] if mask.shape[2] > 1 else mask, scores, -jnp.inf)
            return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), v, precision=precision(self.dtype))

        blocks = jax.lax.map(block, jnp.arange(0, frames, BLOCK_FRAMES))
        y = jnp.moveaxis(blocks, 0, 2).reshape(batch, heads, -1, dim // heads)[:, :, :frames]
        return linear(dim, self.dtype, "out_proj")(y.transpose(0, 2, 1, 3).reshape(batch, frames, dim))


def whole_tokens(codec: Codec, sig: np.ndarray) -> np.ndarray:
    plain = wavlm.RelativeBias, wavlm.Attention
    wavlm.RelativeBias, wavlm.Attention = DistanceBias, BlockedAttention
    try:
        return np.asarray(codec.compiled("sig_to_toks")(codec.variables, sig[None], np.array([len(sig)], np.int32)))[0]
    finally:
        wavlm.RelativeBias, wavlm.Attention = plain


def windowed_tokens(codec: Codec, sig: np.ndarray, seconds: int, context: int) -> tuple[np.ndarray, int, int]:
    """Tokens of a recording in windows, and the window and context in seconds, rounded up to the grid of the codec."""
    windows = codec_windows(codec.config, seconds, context)
    count = windows.count(len(sig) / SAMPLE_RATE_HZ)
    first = [number * windows.hop * SAMPLE_RATE_HZ for number in range(count)]
    pieces = [sig[start : start + windows.samples] if n < count - 1 else sig[start:] for n, start in enumerate(first)]
    rate_hz = codec.config.token_rate_hz
    toks = [codec.encode(piece, SAMPLE_RATE_HZ)[0] for piece in pieces]
    kept = [windows.kept(t, n, count, rate_hz) for n, t in enumerate(toks)]
    return np.concatenate(kept), windows.seconds, windows.context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 5, 10])
    parser.add_argument("--window", type=int, nargs="+", default=[60])
    parser.add_argument("--context", type=int, nargs="+", default=[2])
    parser.add_argument("--json", type=Path, help="write the measurements here")
    args = parser.parse_args()
    codec = Codec.from_pretrained(args.checkpoint)
    speech = np.concatenate([audio.read(file) for file in audio.recordings(args.folder)])
    probe = np.resize(speech, 25 * SAMPLE_RATE_HZ)
    (plain,) = codec.encode(probe, SAMPLE_RATE_HZ)
    print(f"blocked attention: {(whole_tokens(codec, probe) != plain).sum()} of {len(plain)} tokens differ")
    rows = []
    for minutes in args.minutes:
        sig = np.resize(speech, round(minutes * 60 * SAMPLE_RATE_HZ))
        whole = whole_tokens(codec, sig)
        assert len(whole) == lengths.samples_to_tokens(codec.config, len(sig))
        for window in args.window:
            for context in args.context:
                toks, seconds, margin = windowed_tokens(codec, sig, window, context)
                bits = [(int(a) ^ int(b)).bit_count() for a, b in zip(toks, whole, strict=True)]
                rows.append(
                    {
                        "minutes": minutes,
                        "window": seconds,
                        "context": margin,
                        "tokens": float((toks == whole).mean()),
                        "bits": 1 - sum(bits) / len(bits) / codec.config.quantizer.code_dim,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    table = Table(title=f"{args.checkpoint}: agreement of windows with the whole recording")
    for heading in ("minutes", "window, s", "context, s", "tokens equal", "bits equal"):
        table.add_column(heading, justify="right")
    for row in rows:
        equal = (f"{100 * row[kind]:.2f} %" for kind in ("tokens", "bits"))
        table.add_row(f"{row['minutes']:g}", str(row["window"]), str(row["context"]), *equal)
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({"checkpoint": args.checkpoint, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
