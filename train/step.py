"""One training step: discriminators, then generator, in one program. State in, state out."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from focalcodec_jax.nn.codec import FocalCodec

from . import losses, stages
from .discriminators import Discriminators
from .run_config import OptimizerConfig, TrainConfig
from .stages import Batch, Outcome

Tree = Any
State = dict[str, Any]
"""step; params, the trained parts; moments, their optimizer's; and with discriminators `judges`: params, spectral and
moments."""
Metrics = dict[str, Array]
Place = Callable[[Tree], Tree]


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW without its learning rate, which is an argument of the step. A step that is not finite changes nothing:
    the host, which sees the count, stops the run."""
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(*config.betas),
        optax.add_decayed_weights(config.weight_decay),
    )
    return optax.apply_if_finite(adamw, max_consecutive_errors=2**30)


class Trainer:
    """The pure functions of a run: fresh state, one step, and one batch's validation."""

    def __init__(self, config: TrainConfig, model: FocalCodec):
        stages.check(config, model)
        self.config, self.model = config, model
        self.optimizer = optimizer(config.optimizer)
        self.discriminators = (
            Discriminators(config.discriminator, jnp.dtype(config.model.dtype), split=config.mesh.tensor != 1)
            if config.adversarial
            else None
        )

    def init(self, params: Tree, key: jax.Array) -> State:
        """Fresh state around the trained parts' parameters."""
        state = {"step": jnp.zeros((), jnp.int32), "params": params, "moments": self.optimizer.init(params)}
        if self.discriminators is not None:
            judges = self.discriminators.init(key, jnp.zeros((1, self.example_samples)))
            state["judges"] = {
                "params": judges["params"],
                "spectral": judges.get("spectral", {}),
                "moments": self.optimizer.init(judges["params"]),
            }
        return state

    @property
    def example_samples(self) -> int:
        """Enough for every discriminator to have an output."""
        return 4096

    def step(
        self,
        state: State,
        frozen: Tree,
        batch: Batch,
        learning_rate: Float[Array, ""],
        *,
        gather: Place = lambda params: params,
        scatter: Place = lambda grads: grads,
    ) -> tuple[State, Metrics]:
        """Update discriminators, then generator against the updated ones.

        Args:
            frozen: parameters of the parts that are not trained.
            learning_rate: for both optimizers.
            gather: lays out parameters for computing.
            scatter: lays out gradients as their parameters are kept.

        Returns:
            The next state; scalars by name, summed or averaged over the global batch, and `counts`, how often each
            code was used.
        """
        micro = split(batch, self.config.optimizer.accumulate)
        metrics: Metrics = {}
        judges: Any = state.get("judges")
        frozen = gather(frozen)
        if judges is not None:

            def judge(params: Tree, batch: Batch):
                return self.judge(gather(params), judges["spectral"], {**frozen, **gather(state["params"])}, batch)

            grads, noted, spectral = averaged(judge, judges["params"], micro)
            metrics |= noted
            judges = {**judges, "spectral": jax.tree.map(lambda x: x[-1], spectral)}
            judges, norms = self.updated(judges, scatter(grads), learning_rate)
            metrics |= {f"discriminator/{name}": value for name, value in norms.items()}

        def generate(params: Tree, batch: Batch):
            variables = None if judges is None else {k: gather(judges[k]) for k in ("params", "spectral")}
            return self.generate(variables, {**frozen, **gather(params)}, batch)

        grads, noted, sums = averaged(generate, state["params"], micro)
        metrics |= noted | jax.tree.map(lambda x: x.sum(axis=0), sums)
        kept = {name: state[name] for name in ("params", "moments")}
        kept, norms = self.updated(kept, scatter(grads), learning_rate)
        metrics |= {f"generator/{name}": value for name, value in norms.items()}
        following = {"step": state["step"] + 1, **kept}
        if judges is not None:
            following["judges"] = judges
        return following, metrics

    def judge(self, judges: Tree, spectral: Tree, params: Tree, batch: Batch):
        """Discriminators' loss; scalars; and their spectral state after one power iteration."""
        return self.judged(judges, spectral, self.outcome(params, batch), batch)

    def judged(self, judges: Tree, spectral: Tree, heard: Outcome, batch: Batch):
        """The same, of signals already computed."""
        assert self.discriminators is not None
        variables = {"params": judges, "spectral": spectral}
        both = jax.lax.stop_gradient(jnp.concatenate([heard.real, heard.fake]))  # pyright: ignore[reportArgumentType]
        judged, changed = self.discriminators.apply(variables, both, mutable=["spectral"])
        real, fake = (jax.tree.map(lambda x, half=half: jnp.split(x, 2)[half], judged) for half in (0, 1))
        loss = losses.discriminator_loss(real, fake, batch.rows)
        noted = {
            "loss/discriminator": loss,
            "score/real": losses.mean_score(real, batch.rows),
            "score/fake": losses.mean_score(fake, batch.rows),
        }
        return loss, (noted, batch.rows.sum(), changed.get("spectral", {}))

    def generate(self, judges: Tree | None, params: Tree, batch: Batch):
        """Generator's loss against these discriminators (their variables); scalars; and what is summed over
        micro-batches rather than averaged."""
        heard = self.outcome(params, batch)
        terms = dict(heard.terms)
        if judges is not None:
            assert self.discriminators is not None
            fake: Any = self.discriminators.apply(judges, heard.fake)
            terms["adversarial"] = losses.adversarial_loss(fake, batch.rows)
            if self.config.loss.matching:
                real: Any = jax.lax.stop_gradient(self.discriminators.apply(judges, heard.real))
                terms["matching"] = losses.matching_loss(real, fake, batch.rows)
        loss = self.total(terms)
        noted = {"loss/total": loss} | {f"loss/{name}": value for name, value in terms.items()} | heard.notes
        summed = {"bad": batch.bad.sum(), "samples": batch.lengths.astype(jnp.float32).sum()}
        if heard.counts is not None:
            summed["counts"] = heard.counts
        return loss, (noted, heard.weight, summed)

    def total(self, terms: Mapping[str, Array]) -> Float[Array, ""]:
        return sum((getattr(self.config.loss, name) * value for name, value in terms.items()), start=jnp.zeros(()))

    def outcome(self, params: Tree, batch: Batch, cropped: bool = True) -> Outcome:
        return stages.outcome(self.config, self.model, params, batch, cropped=cropped)

    def validate(self, params: Tree, batch: Batch) -> tuple[Metrics, Array | None]:
        """One batch's losses × its weight, that weight, and code counts, to be summed over batches; and its audio."""
        heard = self.outcome(params, batch, cropped=False)
        terms = {f"loss/{name}": value for name, value in heard.terms.items()}
        terms["loss/total"] = self.total(heard.terms)
        summed = {name: value * heard.weight for name, value in (terms | heard.notes).items()}
        summed |= {"weight": heard.weight, "bad": batch.bad.sum()}
        if heard.counts is not None:
            summed["counts"] = heard.counts
        return summed, heard.fake

    def updated(self, state: Tree, grads: Tree, learning_rate: Array) -> tuple[Tree, Metrics]:
        """One optimizer step on `state["params"]`, and the norms that tell how it went."""
        moments: Any
        directions, moments = self.optimizer.update(grads, state["moments"], state["params"])
        updates = jax.tree.map(lambda direction: -learning_rate * direction, directions)
        norms = {
            "gradient_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "not_finite": moments.notfinite_count,
        }
        return {**state, "params": optax.apply_updates(state["params"], updates), "moments": moments}, norms


def split(batch: Batch, pieces: int) -> Batch:
    """Micro-batches along a new first axis. Neighbouring rows go to different pieces, so that each device keeps the
    rows it holds."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0), batch)


def averaged(loss: Callable, params: Tree, batches: Batch) -> tuple[Tree, Metrics, Tree]:
    """Gradient and scalars averaged over micro-batches, one after the other, by how much is real in each; the rest
    along a new first axis.

    Args:
        loss: (params, batch) → loss, (scalars, weight, the rest).
    """
    gradient = jax.grad(loss, has_aux=True)
    pieces = len(batches.lengths)
    if pieces == 1:
        grads, (noted, _, rest) = gradient(params, jax.tree.map(lambda x: x[0], batches))
        return grads, noted, jax.tree.map(lambda x: x[None], rest)

    def add(sums: Tree, batch: Batch):
        grads, (noted, weight, rest) = gradient(params, batch)
        return jax.tree.map(lambda total, x: total + weight * x, sums, (grads, noted, jnp.ones(()))), rest

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], batches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))
    (grads, noted, weight), rest = jax.lax.scan(add, (*zeros, jnp.zeros(())), batches)
    grads, noted = jax.tree.map(lambda x: x / jnp.maximum(weight, 1), (grads, noted))
    return grads, noted, rest
