"""Model FLOPs of a training step. Operations that are only repeated in the implementation are not counted."""

from typing import Any

import jax

from focalcodec_jax.flops import count

from .stages import Batch, merge_params
from .step import Trainer, TrainState


def of_step(trainer: Trainer, state: TrainState, frozen: Any, batch: Batch) -> int:
    """Count the operations of the matrix products and convolutions of a step. Arguments may be shapes.

    The forward pass of the generator is counted once, although the update of the discriminators repeats it. Recomputed
    activations are not counted.
    """
    discriminators = None if state.discriminators is None else state.discriminators.variables

    def generator(trained, frozen, discriminators, batch):
        return jax.grad(lambda p: trainer.generator_loss(merge_params(frozen, p), discriminators, batch)[0])(trained)

    total = count(generator, state.params, frozen, discriminators, batch)
    if discriminators is not None:
        codec = merge_params(frozen, state.params)
        outcome = jax.eval_shape(lambda p, batch: trainer.stage.forward(trainer.context, p, batch), codec, batch)

        def discriminator(params, spectral, outcome, batch):
            return jax.grad(lambda p: trainer.discriminator_loss(p, spectral, outcome, batch)[0])(params)

        total += count(discriminator, discriminators["params"], discriminators["spectral"], outcome, batch)
    return total
