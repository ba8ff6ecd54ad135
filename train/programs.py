"""The compiled programs of a run. The sharding of every argument and result is fixed."""

from functools import partial
from typing import Any

import jax

from . import sharding
from .stages import merge_params
from .step import Layout, Trainer


class Programs:
    """Jitted `init`, `step` and `validate` of a trainer on a mesh.

    Args:
        trainer: functions of the run.
        mesh: mesh of devices.
        trained, frozen: parameters of the codec, or their shapes.

    Attributes:
        target: shapes and shardings of the training state, for restoring a checkpoint.
    """

    def __init__(self, trainer: Trainer, mesh: jax.sharding.Mesh, trained: Any, frozen: Any):
        self.trainer, self.mesh = trainer, mesh
        shapes = jax.eval_shape(trainer.init, trained, jax.random.key(0))
        state = sharding.shardings(shapes, mesh)
        self.target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, state)
        fixed, batch, replicated = (
            sharding.shardings(frozen, mesh), sharding.batch_sharding(mesh), sharding.replicated(mesh),
        )  # fmt: skip
        layout = Layout(partial(sharding.gathered, mesh=mesh), partial(sharding.scattered, mesh=mesh))
        self.init = jax.jit(trainer.init, out_shardings=state)
        self.step = jax.jit(
            partial(trainer.step, layout=layout),
            in_shardings=(state, fixed, batch, replicated),
            out_shardings=(state, replicated),
            donate_argnums=0,
        )
        self.validate = jax.jit(
            lambda params, frozen, batch: trainer.validate(layout.gather(merge_params(frozen, params)), batch),
            in_shardings=(state.params, fixed, batch),
            out_shardings=(replicated, batch),
        )
