"""Validation: mean losses over whole recordings, and examples of reconstructions."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from focalcodec_jax.errors import TrainingError

from .data import Pipeline
from .log import Log
from .metrics import code_usage
from .programs import Programs
from .run_config import TrainConfig
from .stages import Batch


class Validation:
    """Validates a run's parameters on `data.valid`."""

    def __init__(self, config: TrainConfig, programs: Programs, pipeline: Pipeline, log: Log):
        self.config, self.programs, self.pipeline, self.log = config, programs, pipeline, log

    def run(
        self, step: int, params: Any, frozen: Any, interrupted: Callable[[], bool], unreadable: Callable[[list], None]
    ) -> dict[str, float] | None:
        """Compute mean losses over all validation recordings. Returns None if interrupted.

        Args:
            step: number of the step, for the log.
            params, frozen: trained and fixed parameters.
            interrupted: called before each batch. If it returns True, the validation stops.
            unreadable: called with the (id, reason) of recordings that cannot be read.

        Raises:
            TrainingError: too many recordings cannot be read.
        """
        sums: dict[str, Any] = {}
        shown = 0
        for batch, reasons in self.pipeline.batches(0, self.pipeline.plan.batches_per_epoch, workers=0):
            if interrupted():
                return None
            unreadable(reasons)
            summed, fake = self.programs.validate(params, frozen, batch)
            if fake is not None and self._wants_examples and shown < self.config.log.examples:
                shown += self._log_examples(step, shown, batch, fake)
            sums = {name: sums.get(name, 0) + value for name, value in jax.device_get(summed).items()}
        return self._means(sums)

    def _means(self, sums: dict[str, Any]) -> dict[str, float]:
        counts, weight, bad = sums.pop("counts", None), float(sums.pop("weight")), int(sums.pop("bad"))
        recordings, allowed = len(self.pipeline.plan.samples), self.config.data.max_bad_share
        if weight == 0 or bad > allowed * recordings:
            raise TrainingError(
                f"{bad} of the {recordings} recordings of data.valid could not be read, more than data.max_bad_share "
                f"{allowed:g} of them"
            )
        means = {name: float(value) / weight for name, value in sums.items()}
        return means if counts is None else means | code_usage(counts)

    @property
    def _wants_examples(self) -> bool:
        # All processes take part in gathering, so this depends on the configuration and not on the log of one process.
        return self.config.log.tensorboard or self.config.log.wandb is not None

    def _log_examples(self, step: int, shown: int, batch: Batch, fake: Any) -> int:
        real, fake, lengths = (
            np.asarray(multihost_utils.process_allgather(x, tiled=True)) for x in (batch.sig, fake, batch.lengths)
        )
        rows = [row for row in range(len(lengths)) if lengths[row]][: self.config.log.examples - shown]
        for number, row in enumerate(rows, shown):
            if self.log.shows_examples:
                self.log.example(step, f"valid_{number}", real[row, : lengths[row]], fake[row, : lengths[row]])
        return len(rows)
