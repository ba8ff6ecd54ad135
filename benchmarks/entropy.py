"""Memory and time of the entropy loss and its gradient, compared with the dense form over all codes.

    python benchmarks/entropy.py

Memory is the temporary memory of the compiled program, which is known even for programs too large to run. Programs are
timed if they need less than 8 GiB.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from focalcodec_jax.nn import bsq

FRAMES = 12_000


def dense(lats: jax.Array) -> jax.Array:
    """The same loss, computed with a probability for each code."""
    bits = lats.shape[-1]
    codes = bsq.toks_to_codes(jnp.arange(2**bits), bits)
    logits = 2 * 100.0 * lats.reshape(-1, bits) @ codes.T
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    mean = p.mean(axis=0)
    return -(p * log_p).sum(axis=-1).mean() + (mean * jnp.log(jnp.maximum(mean, 1e-5))).sum()


def main() -> None:
    table = Table(title=f"entropy loss and gradient, {FRAMES} frames, float32, {jax.devices()[0].device_kind}")
    for column in ("bits", "form", "working memory (MiB)", "time (s)"):
        table.add_column(column, justify="right")
    rng = np.random.default_rng(0)
    for bits in (13, 16):
        lats = bsq.normalize(jnp.asarray(rng.normal(size=(1, FRAMES, bits)), jnp.float32))
        for name, loss in (("factorised", bsq.entropy_loss), ("dense", dense)):
            program = jax.jit(jax.value_and_grad(loss)).lower(lats).compile()
            size = program.memory_analysis().temp_size_in_bytes
            shown = "–"
            if size < 8 * 2**30:
                times = []
                for _ in range(5):
                    started = time.perf_counter()
                    jax.block_until_ready(program(lats))
                    times.append(time.perf_counter() - started)
                shown = f"{np.median(times):.3f}"
            table.add_row(str(bits), name, f"{size / 2**20:.1f}", shown)
    Console().print(table)


if __name__ == "__main__":
    main()
