"""Checkpoints of a run, with Orbax. They are written atomically in the background, and can be read onto any mesh."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from focalcodec_jax.errors import CheckpointError

from .sections import CheckpointConfig
from .step import DiscriminatorState, TrainState

policies = ocp.training.preservation_policies
DISCRIMINATORS = "judges"
"""Key of the discriminators in checkpoints on disk. It differs from the name in `TrainState` for compatibility."""


def to_tree(state: TrainState) -> dict[str, Any]:
    """Convert a training state to nested dictionaries, which are the layout of checkpoints on disk."""
    tree = {"step": state.step, "params": state.params, "moments": state.moments}
    if state.discriminators is not None:
        fields = ("params", "spectral", "moments")
        tree[DISCRIMINATORS] = {name: getattr(state.discriminators, name) for name in fields}
    return tree


def from_tree(tree: Mapping[str, Any]) -> TrainState:
    """The inverse of `to_tree`."""
    discriminators = tree.get(DISCRIMINATORS)
    return TrainState(
        step=tree["step"],
        params=tree["params"],
        moments=tree["moments"],
        discriminators=None if discriminators is None else DiscriminatorState(**discriminators),
    )


class Checkpoints:
    """The folders `checkpoints/STEP/` of a run, with the training state and metadata of the host.

    The newest checkpoints and the one with the best validation loss are kept, and optionally every n-th step. As a
    context manager, it waits at the end for the checkpoint that is being written.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig):
        keep: list[Any] = [
            policies.LatestN(config.keep_last),
            policies.BestN(
                get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        self.folder = run_dir / "checkpoints"
        every_call: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        kept: Any = policies.AnyPreservationPolicy(keep)
        self._checkpointer = ocp.training.Checkpointer(
            str(self.folder.absolute()),
            save_decision_policy=every_call,
            preservation_policy=kept,
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, problem, traceback) -> None:
        try:
            with _readable(self.folder):
                self._checkpointer.close()
        except (OSError, CheckpointError):
            if problem is None:  # An exception from inside the block takes precedence.
                raise

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: TrainState, metadata: Mapping[str, Any], validation_loss: float | None) -> None:
        """Start to write a checkpoint, after the previous one is complete.

        Args:
            step: number of the step.
            state: the training state.
            metadata: values of the host, as JSON.
            validation_loss: loss of the validation after this step, or None.

        Raises:
            OSError: the previous checkpoint could not be written, for example because the disk is full. Checkpoints
                before it are intact.
        """
        metrics: Any = None if validation_loss is None else {"loss": validation_loss}
        with _readable(self.folder):
            self._checkpointer.save_checkpointables_async(
                step, {"state": to_tree(state)}, custom_metadata=dict(metadata), metrics=metrics
            )

    def restore(self, target: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Read the training state and the metadata of a step.

        Args:
            target: shapes, dtypes and shardings.
            step: number of the step. None selects the newest checkpoint.

        Raises:
            CheckpointError: there is no such checkpoint, or its state has another structure.
        """
        with _readable(self.folder):
            loaded = self._checkpointer.load_checkpointables(step, {"state": to_tree(target)})
            metadata: Any = self._checkpointer.checkpointables_metadata(step).custom_metadata
        return from_tree(loaded["state"]), dict(metadata or {})


def has_checkpoints(run_dir: Path) -> bool:
    """Whether a run folder has a complete checkpoint."""
    return any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*"))


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Convert the errors of Orbax, which hide their cause, to errors with a message on one line."""
    try:
        yield
    except Exception as error:  # Orbax raises exceptions of many types.
        causes, cause = [], error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno:
                raise OSError(cause.errno, cause.strerror, str(folder)) from error
            causes.append((str(cause).strip() or type(cause).__name__).splitlines()[0])
            cause = cause.__cause__ or cause.__context__
        raise CheckpointError(f"{folder}: {', '.join(dict.fromkeys(causes))[:500]}") from error


def load_params(run_dir: Path, step: int | None = None) -> tuple[Any, int]:
    """Read the trained parameters of a run as host arrays. Also returns their step.

    Args:
        run_dir: run folder.
        step: number of the step. None selects the checkpoint with the best validation loss, or the newest one if the
            run has no validation.

    Raises:
        CheckpointError: the run has no checkpoint, or no checkpoint of this step.
    """
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{run_dir} contains no checkpoints; give a run folder of `train run`")
    partial = ocp.Context()
    partial.pytree_options.loading.partial_load = True
    with partial, ocp.training.Checkpointer(str(folder.absolute())) as checkpointer:
        kept: dict[int, Any] = {checkpoint.step: checkpoint.metrics for checkpoint in checkpointer.checkpoints}
        if not kept:
            raise CheckpointError(f"{folder} contains no complete checkpoint yet")
        if step is None:
            scored = [(metrics["loss"], at) for at, metrics in kept.items() if metrics]
            step = min(scored)[1] if scored else max(kept)
        if step not in kept:
            raise CheckpointError(
                f"{folder} contains no step {step}; it has {', '.join(map(str, kept))}", parameter="step"
            )
        with _readable(folder):
            stored = checkpointer.checkpointables_metadata(step).metadata["state"]["params"]
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), stored)
            loaded = checkpointer.load_checkpointables(step, {"state": {"params": target}})
    return jax.device_get(loaded["state"]["params"]), step
