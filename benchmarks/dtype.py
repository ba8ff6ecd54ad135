"""Share of tokens that differ between bfloat16 and float32, on recordings.

    python benchmarks/dtype.py --checkpoint lucadellalib/focalcodec_50hz --audio speech/
    python benchmarks/dtype.py --preset focalcodec_50hz

With --preset, the weights are random. Random latents hardly vary, and their signs would never change. The last layer
of the compressor is therefore normalized on the recordings.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from rich import print

from focalcodec_jax import CodecConfig, FocalCodec, load_pretrained
from focalcodec_jax.files import SAMPLE_RECORDING
from focalcodec_jax.nn.codec import initialize
from focalcodec_jax.recordings import audio


def main(
    checkpoint: Annotated[str | None, typer.Option(help="Name or folder of trained weights.")] = None,
    preset: Annotated[
        str, typer.Option(help="Published model whose structure to use with random weights, without --checkpoint.")
    ] = "focalcodec_50hz",
    recordings: Annotated[
        Path, typer.Option("--audio", help="A recording, or a folder of recordings.")
    ] = SAMPLE_RECORDING,
    seconds: Annotated[float, typer.Option(help="Seconds of audio to process.")] = 60.0,
) -> None:
    sigs = read(recordings, seconds)
    if checkpoint:
        model, variables = load_pretrained(checkpoint)
    else:
        model = FocalCodec(CodecConfig.preset(preset))
        variables = varied(model, initialize(model, jax.random.key(0)), sigs[0])
    exact = latents(model, variables, sigs)
    rounded = latents(FocalCodec(replace(model.config, dtype="bfloat16")), variables, sigs)
    flipped = (exact > 0) != (rounded > 0)
    print(
        f"{checkpoint or preset + ' (random weights)'}, {sum(map(len, sigs)) / 16000:.0f} s of audio: bfloat16 changes "
        f"{flipped.any(axis=-1).mean():.1%} of {len(exact)} tokens, {flipped.mean():.2%} of their bits; "
        f"median latent error {np.median(np.abs(exact - rounded)):.1e} where the median latent is "
        f"{np.median(np.abs(exact)):.2f}"
    )


def read(recordings: Path, seconds: float) -> list[np.ndarray]:
    """Read pieces of five seconds, so that all have the same shape."""
    files = audio.recordings(recordings) if recordings.is_dir() else [recordings]
    size, pieces = 5 * audio.SAMPLE_RATE_HZ, []
    for file in files:
        sig = audio.read(file)
        pieces += [sig[start : start + size] for start in range(0, len(sig) - size + 1, size)]
        if len(pieces) * 5 >= seconds:
            break
    return pieces


def latents(model: FocalCodec, variables: Any, sigs: list[np.ndarray]) -> np.ndarray:
    step = jax.jit(lambda variables, sig: model.apply(variables, sig, method="sig_to_lats"))
    return np.concatenate([np.asarray(step(variables, sig[None]))[0] for sig in sigs])


def varied(model: FocalCodec, variables: Any, sig: np.ndarray) -> Any:
    """Normalize the last layer of the compressor, so that latents have both signs."""

    def capture(variables, sig):
        return model.apply(variables, sig, method="sig_to_lats", capture_intermediates=True, mutable=["intermediates"])

    captured = jax.jit(capture)(variables, jnp.asarray(sig)[None])[1]
    out = captured["intermediates"]["compressor"]["out_proj"]["__call__"][0][0]
    mean, spread = out.mean(axis=0), out.std(axis=0)
    layer = variables["params"]["compressor"]["out_proj"]
    layer = {"kernel": layer["kernel"] / spread, "bias": (layer["bias"] - mean) / spread}
    params = variables["params"]
    return {"params": params | {"compressor": params["compressor"] | {"out_proj": layer}}}


if __name__ == "__main__":
    typer.run(main)
