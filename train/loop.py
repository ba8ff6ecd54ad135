"""A training run: it starts or resumes, runs steps, logs, validates, saves, and stops on request."""

import dataclasses
import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import sharding, step_flops
from .checkpoint import Checkpoints, has_checkpoints
from .data import Pipeline, pipelines
from .log import Log, check_extras
from .metrics import MetricsWindow, UnreadableRecordings, check_finite
from .programs import Programs
from .progress import ProgressCallback, RunMessage, StepProgress, ValidationProgress, ignore
from .run_config import TrainConfig, load_config
from .schedule import NewBob, learning_rate
from .stages import Batch
from .start import as_plain_yaml, changes_since, check_processes_agree, keep_config, starting_codec
from .step import Trainer, TrainState
from .stopping import Stop, stop_signal
from .validation import Validation


@dataclass(frozen=True)
class RunReport:
    """Result of `run`."""

    run_dir: Path
    """Folder with checkpoints, configuration and curves."""
    step: int
    """Last completed step."""
    train_loss: float | None
    """Total loss of the last step. None if this call ran no step."""
    valid_loss: float | None
    """Total loss of the last validation. None if this call did not validate."""
    stopped: bool
    """Whether the run was asked to stop before its end. The same call resumes it."""


@dataclass(frozen=True)
class RunContext:
    """Configuration, programs, data and outputs of a run."""

    config: TrainConfig
    programs: Programs
    train: Pipeline
    checkpoints: Checkpoints
    log: Log
    report: ProgressCallback
    valid: Validation | None


def run(
    config: TrainConfig | str | Path, run_dir: str | Path, *, progress: ProgressCallback | None = None
) -> RunReport:
    """Train until the configured end, or until SIGTERM or Ctrl-C. The same call resumes a stopped run.

    Args:
        config: a configuration, or a YAML file or name as for `load_config`.
        run_dir: folder for checkpoints, configuration and `metrics.jsonl`.
        progress: called with each `RunMessage`, `StepProgress` and `ValidationProgress`.

    Raises:
        ConfigError: the mesh is impossible, or the run folder belongs to another configuration.
        AudioError: there are no recordings.
        CheckpointError: the starting codec or a checkpoint cannot be read.
        TrainingError: gradients stayed non-finite, or too many recordings cannot be read.
        OSError: a checkpoint cannot be written.
    """
    config = config if isinstance(config, TrainConfig) else load_config(config)
    run_dir, report = Path(run_dir), progress or ignore
    check_extras(config.log)
    mesh = sharding.make_mesh(config.mesh, config.data.batch_size)
    resumed = has_checkpoints(run_dir)
    changes = changes_since(run_dir, config) if resumed else {}
    report(RunMessage("loading the codec", "phase"))
    codec = starting_codec(config, run_dir, mesh, resumed=resumed)
    trainer = Trainer(config, codec.model, codec.teacher)
    trained, frozen = config.split_params(codec.params)
    report(RunMessage("listing the recordings", "phase"))
    train, valid = pipelines(config, sharding.batch_sharding(mesh), codec.model.config, report)
    check_processes_agree(config, *(one.reader.recordings for one in (train, valid) if one is not None))
    programs = Programs(trainer, mesh, trained, frozen)
    first = jax.process_index() == 0
    if first:
        keep_config(run_dir, config)
    # A second signal must not interrupt the last checkpoint, which is written in the background.
    with stop_signal() as stop, Checkpoints(run_dir, config.checkpoint) as checkpoints:
        step, newbob, validated = checkpoints.latest or 0, NewBob(), 0
        if step:
            state, metadata = checkpoints.restore(programs.target)
            validated = metadata["host"].pop("validated")
            newbob = NewBob(**metadata["host"])
        else:
            state = programs.init(trained, jax.random.key(config.seed + 1))
        del codec, trained  # The state has its own copy.
        log = Log(run_dir, config.log, config.to_dict(), step=step, first=first)
        with closing(log):
            if step:
                log.event(step, "resumed", **changes)
                report(RunMessage(f"resuming from step {step}" + (f"; changed: {changes}" if changes else "")))
            validation = None if valid is None else Validation(config, programs, valid, log)
            context = RunContext(config, programs, train, checkpoints, log, report, validation)
            loop = Loop(context, newbob, validated)
            stopped = loop.run(state, frozen, step, stop)
    return RunReport(run_dir, loop.step, loop.train_loss, loop.valid_loss, stopped)


class Loop:
    """The loop over steps, with logging, validation and checkpoints between them.

    Args:
        context: configuration, programs, data and outputs of the run.
        newbob: state of the learning rate schedule.
        validated: step of the last validation.
    """

    def __init__(self, context: RunContext, newbob: NewBob, validated: int):
        self.context, self.config = context, context.config
        self.newbob, self.validated = newbob, validated
        self.per_epoch = context.train.plan.batches_per_epoch
        self.total = self.config.steps or (self.config.epochs or 0) * self.per_epoch
        self.validate_every = self.config.validate_every or self.per_epoch
        self.window = MetricsWindow()
        self.unreadable = UnreadableRecordings(self.config.data.max_bad_share, len(context.train.plan.samples))
        self.flops: dict[int, int] = {}
        self.step, self.train_loss, self.valid_loss = 0, None, None

    def run(self, state: TrainState, frozen: Any, start: int, stop: Stop) -> bool:
        """Train from the step after `start`. Returns whether the run was asked to stop before its end."""
        context, config = self.context, self.config
        self.step = start
        batches = context.train.batches(start, self.total, config.data.workers)
        pending: tuple[int, Any] | None = None
        context.report(StepProgress(start, self.total))
        with closing(batches):
            if start and self.validates(start) and self.validated != start:  # the run stopped before this validation
                self.validate(state, frozen, start, stop)
            for step in range(start + 1, self.total + 1):
                with self.window.wait():
                    batch, reasons = next(batches)
                self.name_unreadable(step, reasons)
                rate = np.float32(self.learning_rate(step))
                flop = self.flop(state, frozen, batch)
                state, metrics = context.programs.step(state, frozen, batch, rate)
                # Read the previous step's metrics while the device works on this one.
                self.record(pending)
                pending = (step, {**metrics, "learning_rate": rate, "flop": flop})
                stopping, validating = stop(step), self.validates(step)
                if validating or stopping or step % config.checkpoint.every == 0 or step == self.total:
                    self.record(pending)
                    pending = None
                    loss = self.validate(state, frozen, step, stop) if validating and not stopping else None
                    self.save(step, state, loss)
                    stopping = stopping or stop.now
                if stopping:
                    context.log.event(step, "stopped")
                    text = f"asked to stop: saved step {step}; the same command continues from there"
                    context.report(RunMessage(text))
                    return True
        context.report(RunMessage(f"done: {self.total} steps"))
        return False

    def validates(self, step: int) -> bool:
        """Whether to validate after a step."""
        return self.context.valid is not None and (step % self.validate_every == 0 or step == self.total)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, with the factor of NewBob."""
        return learning_rate(self.config.optimizer, step, self.total, self.per_epoch) * self.newbob.rate_factor

    def flop(self, state: TrainState, frozen: Any, batch: Batch) -> int:
        """Number of operations of a step. They are counted once for each length of batch."""
        samples = batch.sig.shape[1]
        if samples not in self.flops:
            self.flops[samples] = step_flops.of_step(self.context.programs.trainer, state, frozen, batch)
        return self.flops[samples]

    def record(self, pending: tuple[int, Any] | None) -> None:
        """Read the metrics of a step, and log their means at the configured interval.

        Raises:
            TrainingError: the gradient stayed non-finite, or too many recordings cannot be read.
        """
        if pending is None:
            return
        step, metrics = pending[0], jax.device_get(pending[1])
        counts = metrics.pop("counts", None)
        values = {name: float(value) for name, value in metrics.items()}
        check_finite(step, values, self.config.optimizer.patience, self.context.checkpoints.latest)
        self.unreadable.add(self.config.data.batch_size, int(values.pop("bad")))
        self.window.add(values, counts)
        self.step, self.train_loss = step, values["loss/total"]
        logged = step % self.config.log.every == 0 or step == self.total
        speed = self.window.speed
        if logged:
            self.context.log.scalars(step, "train", {**self.window.means(), "epoch": step / self.per_epoch})
            self.window = MetricsWindow()
        self.context.report(StepProgress(step, self.total, self.train_loss, speed, logged))

    def name_unreadable(self, step: int, reasons: list[tuple[str, str]]) -> None:
        """Log and report unreadable recordings, given as (id, reason), that were not reported before."""
        for name, reason in self.unreadable.new(reasons):
            self.context.log.event(step, "unreadable", id=name, reason=reason)
            self.context.report(RunMessage(f"skipped {name}: {reason}", "warning"))

    def validate(self, state: TrainState, frozen: Any, step: int, stop: Stop) -> float | None:
        """Validate. Returns the total loss, or None if the validation was interrupted or the loss is not finite.

        Raises:
            TrainingError: too many recordings cannot be read.
        """
        assert self.context.valid is not None
        with self.window.pause():
            values = self.context.valid.run(
                step, state.params, frozen, lambda: stop.now, lambda reasons: self.name_unreadable(step, reasons)
            )
        if values is None:
            return None
        loss = values["loss/total"]
        self.newbob.update(self.config.optimizer, loss)
        self.validated, self.valid_loss = step, loss
        self.context.log.scalars(step, "valid", values)
        self.context.report(ValidationProgress(step, loss))
        return loss if math.isfinite(loss) else None

    def save(self, step: int, state: TrainState, loss: float | None) -> None:
        """Start to write a checkpoint. The number of the step is also the position in the data."""
        host = {**dataclasses.asdict(self.newbob), "validated": self.validated}
        metadata = {"host": host, "config": as_plain_yaml(self.config.to_dict())}
        self.context.checkpoints.save(step, state, metadata, loss)
