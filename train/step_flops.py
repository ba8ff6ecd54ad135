"""Arithmetic of a training step."""

from typing import Any

import jax

from focalcodec_jax.flops import count

from .stages import Batch
from .step import Trainer


def of_step(trainer: Trainer, state: Any, frozen: Any, batch: Batch) -> int:
    """Operations that a step's mathematics needs: the discriminators' step hears a signal that is there already, and
    nothing is counted twice for being recomputed."""
    params = {**frozen, **state["params"]}
    heard = jax.eval_shape(trainer.outcome, params, batch)
    judges = state.get("judges")
    variables = None if judges is None else {name: judges[name] for name in ("params", "spectral")}

    def generator(trained, frozen, judges, batch):
        return jax.grad(lambda p: trainer.generate(judges, {**frozen, **p}, batch)[0])(trained)

    total = count(generator, state["params"], frozen, variables, batch)
    if variables is not None:

        def discriminators(params, spectral, heard, batch):
            return jax.grad(lambda p: trainer.judged(p, spectral, heard, batch)[0])(params)

        total += count(discriminators, variables["params"], variables["spectral"], heard, batch)
    return total
