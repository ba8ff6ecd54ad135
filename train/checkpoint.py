"""Checkpoints of a run, by Orbax: written beside the training, whole or not at all, and read onto any mesh."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from focalcodec_jax.errors import CheckpointError

from .run_config import CheckpointConfig

policies = ocp.training.preservation_policies


class Checkpoints:
    """`checkpoints/STEP/` in a run folder: the training state, and what the host must know to go on.

    The last few are kept, the best by validation, and every so many. A context manager: leaving it waits for what is
    being written.
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
            if problem is None:  # or else the first problem is the one to tell
                raise

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Any, host: Mapping[str, Any], validation_loss: float | None) -> None:
        """Begin to write a checkpoint; it appears when whole. An earlier one still being written is waited for.

        Raises:
            OSError: the earlier one could not be written (the disk is full, say). Those before it are intact.
        """
        metrics: Any = None if validation_loss is None else {"loss": validation_loss}
        with _readable(self.folder):
            self._checkpointer.save_checkpointables_async(
                step, {"state": state}, custom_metadata=dict(host), metrics=metrics
            )

    def restore(self, target: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """The state of a step (the latest), laid out as `target` says, and what the host kept with it.

        Raises:
            CheckpointError: there is none, or it does not hold that state.
        """
        with _readable(self.folder):
            loaded = self._checkpointer.load_checkpointables(step, {"state": target})
            host: Any = self._checkpointer.checkpointables_metadata(step).custom_metadata
        return loaded["state"], dict(host or {})


def has_checkpoints(run_dir: Path) -> bool:
    """Whether a whole checkpoint lies in a run folder, and so a run has begun there."""
    return any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*"))


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turns Orbax's errors, which hide their cause, into one line."""
    try:
        yield
    except Exception as error:  # it raises of every kind
        causes, cause = [], error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno:
                raise OSError(cause.errno, cause.strerror, str(folder)) from error
            causes.append((str(cause).strip() or type(cause).__name__).splitlines()[0])
            cause = cause.__cause__ or cause.__context__
        raise CheckpointError(f"{folder}: {': '.join(dict.fromkeys(causes))[:500]}") from error


def load_params(run_dir: Path, step: int | None = None) -> tuple[Any, int]:
    """The trained parts' parameters of a run, as host arrays, and the step they are of: the best by validation where
    there was one, or else the latest.

    Raises:
        CheckpointError: the run holds no checkpoint, or none of that step.
    """
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{run_dir} holds no checkpoints; give a run folder of `train run`")
    partial = ocp.Context()
    partial.pytree_options.loading.partial_load = True
    with partial, ocp.training.Checkpointer(str(folder.absolute())) as checkpointer:
        kept: dict[int, Any] = {checkpoint.step: checkpoint.metrics for checkpoint in checkpointer.checkpoints}
        if not kept:
            raise CheckpointError(f"{folder} holds no whole checkpoint yet")
        if step is None:
            scored = [(metrics["loss"], at) for at, metrics in kept.items() if metrics]
            step = min(scored)[1] if scored else max(kept)
        if step not in kept:
            raise CheckpointError(f"{folder} holds no step {step}; it has {', '.join(map(str, kept))}")
        with _readable(folder):
            stored = checkpointer.checkpointables_metadata(step).metadata["state"]["params"]
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), stored)
            loaded = checkpointer.load_checkpointables(step, {"state": {"params": target}})
    return jax.device_get(loaded["state"]["params"]), step
