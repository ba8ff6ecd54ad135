"""One training step, which updates the discriminators and then the generator in one program. It is a pure function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from focalcodec_jax.nn.codec import FocalCodec

from . import losses
from .discriminators import Discriminators
from .run_config import TrainConfig
from .sections import OptimizerConfig
from .stages import Batch, Leaf, Outcome, StageContext, merge_params

Tree = Any
Metrics = dict[str, Array]
"""Scalars by name. `counts` is an array (codes,) with the number of uses of each code."""
EXAMPLE_SAMPLES = 4096
"""Length of a signal that is long enough for every discriminator."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiscriminatorState:
    """State of the discriminators and of their optimizer."""

    params: Tree
    spectral: Tree
    """Singular vectors of the spectrally normalized kernels."""
    moments: Tree
    """State of the optimizer."""

    @property
    def variables(self) -> dict[str, Tree]:
        """Variables in the layout of Flax."""
        return {"params": self.params, "spectral": self.spectral}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes."""

    step: Leaf
    params: Tree
    """Trained parameters of the codec. The fixed parameters are a separate argument of the step."""
    moments: Tree
    """State of the optimizer of `params`."""
    discriminators: DiscriminatorState | Leaf | None = None
    """None in runs without adversarial losses. `Leaf`, because JAX puts placeholders in place of None."""


@dataclass(frozen=True)
class Layout:
    """Layout of arrays on the mesh during a step. The default does not change the layout."""

    gather: Callable[[Tree], Tree] = lambda params: params
    """Gives parameters the layout for computing."""
    scatter: Callable[[Tree], Tree] = lambda grads: grads
    """Gives gradients the layout in which their parameters are stored."""


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW without the learning rate, which is an argument of the step.

    An update with non-finite gradients is skipped, and a counter is incremented. The host reads the counter and stops
    the run.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(*config.betas),
        optax.add_decayed_weights(config.weight_decay),
    )
    return optax.apply_if_finite(adamw, max_consecutive_errors=2**30)


class Trainer:
    """The pure functions of a run: the initial state, one step, and the validation of one batch.

    Args:
        config: configuration of the run.
        model: the codec.
        teacher: codec whose encoder computes targets, for a stage that has a teacher.

    Raises:
        ConfigError: the stage cannot train this codec.
    """

    def __init__(self, config: TrainConfig, model: FocalCodec, teacher: FocalCodec | None = None):
        self.stage = config.definition
        self.stage.check_codec(model.config)
        self.config, self.model = config, model
        self.context = StageContext(model, config.loss, config.crop_frames, config.model.remat, teacher)
        self.optimizer = optimizer(config.optimizer)
        self.discriminators = (
            Discriminators(config.discriminator, jnp.dtype(config.model.dtype), split=config.mesh.tensor != 1)
            if config.adversarial
            else None
        )

    def init(self, params: Tree, key: jax.Array) -> TrainState:
        """Create the initial state with these trained parameters."""
        discriminators = None
        if self.discriminators is not None:
            variables = self.discriminators.init(key, jnp.zeros((1, EXAMPLE_SAMPLES)))
            moments = self.optimizer.init(variables["params"])
            discriminators = DiscriminatorState(variables["params"], variables.get("spectral", {}), moments)
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), discriminators)

    def step(
        self,
        state: TrainState,
        frozen: Tree,
        batch: Batch,
        learning_rate: Float[Array, ""],
        layout: Layout = Layout(),
    ) -> tuple[TrainState, Metrics]:
        """Update the discriminators, then the generator against the updated discriminators.

        Args:
            state: the training state.
            frozen: fixed parameters.
            batch: the global batch.
            learning_rate: learning rate of both optimizers.
            layout: layout of arrays on the mesh.

        Returns:
            The next state, and metrics that are summed or averaged over the global batch.
        """
        gather, scatter = layout.gather, layout.scatter
        micro_batches = split_batch(batch, self.config.optimizer.accumulate)
        frozen = gather(frozen)
        metrics: Metrics = {}

        discriminators = state.discriminators
        if discriminators is not None:
            spectral = discriminators.spectral

            def discriminator_loss(params: Tree, batch: Batch):
                codec = merge_params(frozen, gather(state.params))
                outcome = self.stage.forward(self.context, codec, batch)
                return self.discriminator_loss(gather(params), spectral, outcome, batch)

            grads, scalars, spectral = mean_gradient(discriminator_loss, discriminators.params, micro_batches)
            params, moments, norms = self.update(
                discriminators.params, discriminators.moments, scatter(grads), learning_rate
            )
            discriminators = DiscriminatorState(params, jax.tree.map(lambda x: x[-1], spectral), moments)
            metrics |= scalars | {f"discriminator/{name}": value for name, value in norms.items()}

        def generator_loss(params: Tree, batch: Batch):
            variables = None if discriminators is None else gather(discriminators.variables)
            return self.generator_loss(merge_params(frozen, gather(params)), variables, batch)

        grads, scalars, sums = mean_gradient(generator_loss, state.params, micro_batches)
        params, moments, norms = self.update(state.params, state.moments, scatter(grads), learning_rate)
        metrics |= scalars | jax.tree.map(lambda x: x.sum(axis=0), sums)
        metrics |= {f"generator/{name}": value for name, value in norms.items()}
        return TrainState(state.step + 1, params, moments, discriminators), metrics

    def discriminator_loss(self, params: Tree, spectral: Tree, outcome: Outcome, batch: Batch):
        """Hinge loss of the discriminators for the outcome of a stage.

        Returns:
            The loss, and a tuple of scalars, their weight, and the spectral state after one power iteration.
        """
        assert self.discriminators is not None
        self.stage.check_outcome(outcome, adversarial=True)
        assert outcome.real is not None
        assert outcome.fake is not None
        both = jax.lax.stop_gradient(jnp.concatenate([outcome.real, outcome.fake]))
        variables = {"params": params, "spectral": spectral}
        outputs, changed = self.discriminators.apply(variables, both, mutable=["spectral"])
        real, fake = (jax.tree.map(lambda x, half=half: jnp.split(x, 2)[half], outputs) for half in (0, 1))
        loss = losses.discriminator_loss(real, fake, batch.rows)
        scalars = {
            "loss/discriminator": loss,
            "score/real": losses.mean_score(real, batch.rows),
            "score/fake": losses.mean_score(fake, batch.rows),
        }
        return loss, (scalars, batch.rows.sum(), changed.get("spectral", {}))

    def generator_loss(self, params: Tree, discriminators: Tree | None, batch: Batch):
        """Loss of the codec.

        Args:
            params: all parameters of the codec.
            discriminators: variables of the discriminators, or None.

        Returns:
            The loss, and a tuple of scalars, their weight, and values that are summed over micro-batches.
        """
        outcome = self.stage.forward(self.context, params, batch)
        self.stage.check_outcome(outcome, discriminators is not None)
        terms = dict(outcome.terms)
        if discriminators is not None:
            assert self.discriminators is not None
            fake: Any = self.discriminators.apply(discriminators, outcome.fake)
            terms["adversarial"] = losses.adversarial_loss(fake, batch.rows)
            if self.config.loss.matching:
                real: Any = jax.lax.stop_gradient(self.discriminators.apply(discriminators, outcome.real))
                terms["matching"] = losses.matching_loss(real, fake, batch.rows)
        loss = self.weighted_sum(terms)
        scalars = {"loss/total": loss} | {f"loss/{name}": value for name, value in terms.items()} | outcome.notes
        sums = {"bad": batch.bad.sum(), "samples": batch.lengths.astype(jnp.float32).sum()}
        if outcome.counts is not None:
            sums["counts"] = outcome.counts
        return loss, (scalars, outcome.weight, sums)

    def weighted_sum(self, terms: Mapping[str, Array]) -> Float[Array, ""]:
        """Sum of the losses, multiplied by their configured weights."""
        return sum((getattr(self.config.loss, name) * value for name, value in terms.items()), start=jnp.zeros(()))

    def validate(self, params: Tree, batch: Batch) -> tuple[Metrics, Array | None]:
        """Validate one batch of whole recordings.

        Returns:
            Values to be summed over batches: losses times the weight of the batch, the weight, and code counts.
            The decoded audio, or None.
        """
        outcome = self.stage.forward(replace(self.context, crop_frames=None), params, batch)
        scalars = {f"loss/{name}": value for name, value in outcome.terms.items()}
        scalars["loss/total"] = self.weighted_sum(outcome.terms)
        sums = {name: value * outcome.weight for name, value in (scalars | outcome.notes).items()}
        sums |= {"weight": outcome.weight, "bad": batch.bad.sum()}
        if outcome.counts is not None:
            sums["counts"] = outcome.counts
        return sums, outcome.fake

    def update(self, params: Tree, moments: Tree, grads: Tree, learning_rate: Array) -> tuple[Tree, Any, Metrics]:
        """One optimizer step. Returns the next parameters, the next moments, and norms for the log."""
        following: Any
        directions, following = self.optimizer.update(grads, moments, params)
        updates = jax.tree.map(lambda direction: -learning_rate * direction, directions)
        norms = {
            "gradient_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "not_finite": following.notfinite_count,
        }
        return optax.apply_updates(params, updates), following, norms


def split_batch(batch: Batch, pieces: int) -> Batch:
    """Split a batch into micro-batches along a new first axis.

    Neighbouring rows go to different micro-batches, so that rows stay on their devices.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0), batch)


def mean_gradient(loss: Callable, params: Tree, batches: Batch) -> tuple[Tree, Metrics, Tree]:
    """Gradient and scalars, averaged over micro-batches by their weights.

    Args:
        loss: function (params, batch) → loss, (scalars, weight, rest).
        params: argument of the gradient.
        batches: micro-batches along the first axis.

    Returns:
        The gradient, the scalars, and the rest, stacked along a new first axis.
    """
    gradient = jax.grad(loss, has_aux=True)
    pieces = len(batches.lengths)
    if pieces == 1:
        grads, (scalars, _, rest) = gradient(params, jax.tree.map(lambda x: x[0], batches))
        return grads, scalars, jax.tree.map(lambda x: x[None], rest)

    def add(sums: Tree, batch: Batch):
        grads, (scalars, weight, rest) = gradient(params, batch)
        return jax.tree.map(lambda total, x: total + weight * x, sums, (grads, scalars, jnp.ones(()))), rest

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], batches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))
    (grads, scalars, weight), rest = jax.lax.scan(add, (*zeros, jnp.zeros(())), batches)
    grads, scalars = jax.tree.map(lambda x: x / jnp.maximum(weight, 1), (grads, scalars))
    return grads, scalars, rest
