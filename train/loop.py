"""A training run: restore or begin, step, log, validate, save, stop well."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from focalcodec_jax.errors import ConfigError, TrainingError
from focalcodec_jax.recordings.recording import Recording

from . import sharding, step_flops as flops
from .checkpoint import Checkpoints, has_checkpoints
from .data import Pipeline, select
from .log import Log, check_extras, usage
from .progress import Progress, Window
from .run_config import OptimizerConfig, TrainConfig
from .stages import Batch
from .start import changes_since, keep_config, plain, starting_codec
from .step import Trainer
from .stopping import Stop, stop_signal


@dataclass
class Host:
    """What the host keeps beside the training state, saved with each checkpoint."""

    rate_factor: float = 1.0
    """NewBob's product so far."""
    last_validation: float | None = None
    validated: int = 0
    """Step of the last validation."""


def run(config: TrainConfig, run_dir: Path, console: Console) -> None:
    """Train until the configured end, or until asked to stop; the same call goes on where it stopped.

    Raises:
        ConfigError: an impossible mesh, or a run folder of another configuration.
        AudioError: no recordings.
        CheckpointError: the codec to begin from, or a checkpoint to go on from, cannot be read.
        TrainingError: losses or gradients stayed not finite, or too many recordings cannot be read.
        OSError: a checkpoint could not be written.
    """
    check_extras(config.log)
    mesh = sharding.make_mesh(config.mesh, config.data.batch_size)
    first = jax.process_index() == 0
    begun = has_checkpoints(run_dir)
    changes = changes_since(run_dir, config) if begun else {}
    with console.status("loading the codec"):
        model, params = starting_codec(config, run_dir, mesh, begun=begun)
    trainer = Trainer(config, model)
    trained, frozen = config.parted(params)

    align = model.config.encoder.samples_per_frame * math.prod(model.config.compressor.factors)
    pipeline, valid = pipelines(config, mesh, align, console)
    agree(config, *(one.load.recordings for one in (pipeline, valid) if one is not None))
    compiled = Compiled(trainer, mesh, trained, frozen)
    if first:
        keep_config(run_dir, config)
    # a second signal must not cut off the last checkpoint, which is written in the background
    with stop_signal() as stop, Checkpoints(run_dir, config.checkpoint) as checkpoints:
        step, host = checkpoints.latest or 0, Host()
        if step:
            state, kept = checkpoints.restore(compiled.target)
            host = Host(**kept["host"])
        else:
            state = compiled.init(trained, jax.random.key(config.seed + 1))
        del params, trained  # the state has its own copy
        log = Log(run_dir, config.log, config.to_dict(), step=step, first=first)
        try:
            if step:
                log.event(step, "resumed", **changes)
                console.print(f"going on from step {step}" + (f"; changed: {changes}" if changes else ""))
            loop = Loop(config, compiled, pipeline, valid, checkpoints, log, console, host)
            loop.run(state, frozen, step, stop)
        finally:
            log.close()


class Compiled:
    """The jitted programs of a run, with every sharding pinned."""

    def __init__(self, trainer: Trainer, mesh: jax.sharding.Mesh, trained: Any, frozen: Any):
        self.trainer, self.mesh = trainer, mesh
        shapes = jax.eval_shape(trainer.init, trained, jax.random.key(0))
        where = sharding.shardings(shapes, mesh)
        self.target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where)
        kept, split, whole = sharding.shardings(frozen, mesh), sharding.batch_sharding(mesh), sharding.replicated(mesh)
        self.init = jax.jit(trainer.init, out_shardings=where)
        self.step = jax.jit(
            partial(trainer.step, gather=partial(sharding.gathered, mesh=mesh), scatter=partial(_scatter, mesh=mesh)),
            in_shardings=(where, kept, split, whole),
            out_shardings=(where, whole),
            donate_argnums=0,
        )
        self.validate = jax.jit(
            lambda params, frozen, batch: trainer.validate(sharding.gathered({**frozen, **params}, mesh), batch),
            in_shardings=(where["params"], kept, split),
            out_shardings=(whole, split),
        )


def _scatter(grads: Any, mesh: jax.sharding.Mesh) -> Any:
    return jax.lax.with_sharding_constraint(grads, sharding.shardings(grads, mesh))


class Loop:
    """Steps, and what happens between them."""

    def __init__(
        self,
        config: TrainConfig,
        compiled: Compiled,
        pipeline: Pipeline,
        valid: Pipeline | None,
        checkpoints: Checkpoints,
        log: Log,
        console: Console,
        host: Host,
    ):
        self.config, self.compiled, self.pipeline, self.valid = config, compiled, pipeline, valid
        self.checkpoints, self.log, self.console, self.host = checkpoints, log, console, host
        self.per_epoch = pipeline.plan.batches_per_epoch
        self.total = total_steps(config, self.per_epoch)
        self.validate_every = config.validate_every or self.per_epoch
        self.window = Window()
        self.read, self.bad, self.named = 0, 0, set()
        self.flops: dict[int, int] = {}

    def run(self, state: Any, frozen: Any, start: int, stop: Stop) -> None:
        """Train from the step after `start`."""
        config = self.config
        batches = self.pipeline.batches(start, self.total, config.data.workers)
        waiting: tuple[int, Any] | None = None
        with Progress(self.console, self.total, start) as self.progress, closing(batches):
            if start and self.validates(start) and self.host.validated != start:  # asked to stop before it was done
                self.validation(state, frozen, start, stop)
            for step in range(start + 1, self.total + 1):
                with self.window.wait():
                    batch, reasons = next(batches)
                self.name_bad(step, reasons)
                rate = np.float32(self.learning_rate(step))
                flop = self.flop(state, frozen, batch)
                state, metrics = self.compiled.step(state, frozen, batch, rate)
                # The device works on this step while the host reads the one before.
                self.note(waiting)
                waiting = (step, {**metrics, "learning_rate": rate, "flop": flop})
                stopping, validating = stop(step), self.validates(step)
                saving = validating or stopping or step % config.checkpoint.every == 0 or step == self.total
                if saving:
                    self.note(waiting)
                    waiting = None
                    loss = self.validation(state, frozen, step, stop) if validating and not stopping else None
                    self.save(step, state, loss)
                    stopping = stopping or stop.now
                if stopping:
                    self.log.event(step, "stopped")
                    self.console.print(f"asked to stop: saved step {step}; the same command goes on from there")
                    return
            self.console.print(f"done: {self.total} steps")

    def validates(self, step: int) -> bool:
        return self.valid is not None and (step % self.validate_every == 0 or step == self.total)

    def flop(self, state: Any, frozen: Any, batch: Batch) -> int:
        """Operations of a step, counted once for each length of batch."""
        samples = batch.sig.shape[1]
        if samples not in self.flops:
            self.flops[samples] = flops.of_step(self.compiled.trainer, state, frozen, batch)
        return self.flops[samples]

    def learning_rate(self, step: int) -> float:
        return learning_rate(self.config.optimizer, step, self.total, self.per_epoch) * self.host.rate_factor

    def note(self, waiting: tuple[int, Any] | None) -> None:
        """Read a step's numbers; log their means when enough are together.

        Raises:
            TrainingError: the loss or the gradient has not been finite for too long, or too many recordings could not
                be read.
        """
        if waiting is None:
            return
        step, metrics = waiting[0], jax.device_get(waiting[1])
        counts = metrics.pop("counts", None)
        values = {name: float(value) for name, value in metrics.items()}
        self.check_finite(step, values)
        self.check_bad(values.pop("bad"))
        self.window.add(values, counts)
        self.progress.update(step, values["loss/total"], self.window)
        if step % self.config.log.every == 0 or step == self.total:
            self.log.scalars(step, "train", {**self.window.means(), "epoch": step / self.per_epoch})
            self.progress.line(step)
            self.window = Window()

    def check_finite(self, step: int, values: dict[str, float]) -> None:
        for network in ("discriminator", "generator"):
            if values.get(f"{network}/not_finite", 0) >= self.config.optimizer.patience:
                wrong = [n for n, v in values.items() if n.startswith("loss/") and not math.isfinite(v)]
                what = ", ".join(wrong) or f"the {network}'s gradient"
                raise TrainingError(
                    f"stopped at step {step}: {what} was NaN or infinite for {self.config.optimizer.patience} steps in "
                    f"a row, which changed nothing; the last checkpoint is of step {self.checkpoints.latest}"
                )

    def check_bad(self, bad: float) -> None:
        self.read += self.config.data.batch_size
        self.bad += int(bad)
        allowed = self.config.data.max_bad_share * max(self.read, len(self.pipeline.plan.samples))
        if self.bad > allowed:
            raise TrainingError(
                f"{self.bad} recordings could not be read, more than data.max_bad_share "
                f"{self.config.data.max_bad_share:g} of them"
                + (f", such as {', '.join(sorted(self.named)[:3])}" if self.named else "; other processes name them")
            )

    def name_bad(self, step: int, reasons: list[tuple[str, str]]) -> None:
        for name, reason in reasons:
            if name not in self.named:
                self.named.add(name)
                self.log.event(step, "unreadable", id=name, reason=reason)
                self.console.print(f"[yellow]skipped {name}: {reason}[/]", soft_wrap=True, highlight=False)

    def validation(self, state: Any, frozen: Any, step: int, stop: Stop) -> float | None:
        """Loss over all validation recordings; None when asked to stop meanwhile, or when it is not finite.

        Raises:
            TrainingError: too many of them cannot be read.
        """
        assert self.valid is not None
        sums: dict[str, Any] = {}
        shown = 0
        with self.window.pause():
            for batch, reasons in self.valid.batches(0, self.valid.plan.batches_per_epoch, workers=0):
                if stop.now:
                    return None
                self.name_bad(step, reasons)
                summed, fake = self.compiled.validate(state["params"], frozen, batch)
                if fake is not None and self.config.log.examples > shown and self.wants_examples:
                    shown += self.show(step, shown, batch, fake)
                summed = jax.device_get(summed)
                sums = {name: sums.get(name, 0) + value for name, value in summed.items()}
        counts, weight, bad = sums.pop("counts", None), float(sums.pop("weight")), int(sums.pop("bad"))
        if weight == 0 or bad > self.config.data.max_bad_share * len(self.valid.plan.samples):
            raise TrainingError(
                f"{bad} of the {len(self.valid.plan.samples)} recordings of data.valid could not be read, more than "
                f"data.max_bad_share {self.config.data.max_bad_share:g} of them"
            )
        values = {name: float(value) / weight for name, value in sums.items()}
        if counts is not None:
            values |= usage(counts)
        if self.config.optimizer.schedule == "newbob" and math.isfinite(values["loss/total"]):
            self.newbob(values["loss/total"])
        self.host.validated = step
        self.log.scalars(step, "valid", values)
        self.progress.validated(values["loss/total"])
        return values["loss/total"] if math.isfinite(values["loss/total"]) else None

    def newbob(self, loss: float) -> None:
        """Lower the rate when validation hardly improves on the one before."""
        config, last = self.config.optimizer, self.host.last_validation
        if last is not None and last - loss < config.threshold * abs(last):
            self.host.rate_factor *= config.factor
        self.host.last_validation = loss

    @property
    def wants_examples(self) -> bool:
        # every process must take part in gathering, so that this does not ask the log of one
        return self.config.log.tensorboard or self.config.log.wandb is not None

    def show(self, step: int, shown: int, batch: Any, fake: Any) -> int:
        real, fake, lengths = (
            np.asarray(multihost_utils.process_allgather(x, tiled=True)) for x in (batch.sig, fake, batch.lengths)
        )
        rows = [row for row in range(len(lengths)) if lengths[row]][: self.config.log.examples - shown]
        for number, row in enumerate(rows, shown):
            if self.log.shows_examples:
                self.log.example(step, f"valid_{number}", real[row, : lengths[row]], fake[row, : lengths[row]])
        return len(rows)

    def save(self, step: int, state: Any, loss: float | None) -> None:
        # The step's number is the position in the data; the configuration is the one of this step, should it change.
        kept = {"host": dataclasses.asdict(self.host), "config": plain(self.config.to_dict())}
        self.checkpoints.save(step, state, kept, loss)


# --- beginning and end -----------------------------------------------------------------------------------------


def pipelines(config: TrainConfig, mesh, align: int, console: Console) -> tuple[Pipeline, Pipeline | None]:
    """Training and validation data."""
    where = sharding.batch_sharding(mesh)
    with console.status("looking through the recordings"):
        train, left_out = select(config.data.train, config.data, "train")
        valid = select(config.data.valid, config.data, "valid")[0] if config.data.valid else None
    hours = sum(r.seconds for r in train) / 3600
    console.print(f"{len(train)} recordings, {hours:.2f} h" + (f"; {len(left_out)} too short or long" * bool(left_out)))
    whole = dataclasses.replace(config.data, crop_seconds=None)
    return (
        Pipeline(train, config.data, where, seed=config.seed, align=align),
        None if valid is None else Pipeline(valid, whole, where, seed=None, align=align),
    )


def agree(config: TrainConfig, *corpora: Sequence[Recording]) -> None:
    """Refuse to begin where processes would plan different batches.

    Raises:
        ConfigError: their configurations or recordings differ.
    """
    if jax.process_count() == 1:
        return
    listed = [plain(config.to_dict()), *([(r.id, r.samples) for r in corpus] for corpus in corpora)]
    digest = np.frombuffer(hashlib.sha256(json.dumps(listed).encode()).digest(), np.uint32)
    if (multihost_utils.process_allgather(digest) != digest).any():
        raise ConfigError(
            "the processes of this run differ in their configuration or in the recordings they find; give all the same "
            "command, and folders that all of them see"
        )


def total_steps(config: TrainConfig, per_epoch: int) -> int:
    return config.steps if config.steps is not None else config.epochs * per_epoch  # pyright: ignore[reportOptionalOperand]


def learning_rate(config: OptimizerConfig, step: int, total: int, per_epoch: int) -> float:
    """Rate of a step, counted from 1; NewBob's factor is the host's."""
    rate = config.learning_rate * min(1.0, step / max(config.warmup_steps, 1))
    if config.schedule == "epoch":
        rate *= config.factor ** ((step - 1) // per_epoch)
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * (step - 1) / total))
    return rate
