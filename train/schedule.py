"""Learning rate of each step."""

import math
from dataclasses import dataclass

from .sections import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total: int, per_epoch: int) -> float:
    """Learning rate without the factor of NewBob.

    Args:
        config: configuration of the optimizer.
        step: number of the step, from 1.
        total: number of steps of the run.
        per_epoch: number of steps of an epoch.
    """
    rate = config.learning_rate * min(1.0, step / max(config.warmup_steps, 1))
    if config.schedule == "epoch":
        rate *= config.factor ** ((step - 1) // per_epoch)
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * (step - 1) / total))
    return rate


@dataclass
class NewBob:
    """Lowers the learning rate if validation improves too little, as in SpeechBrain's NewBob with patience 0."""

    rate_factor: float = 1.0
    """Factor on the learning rate so far."""
    last_validation: float | None = None
    """Loss of the previous validation."""

    def update(self, config: OptimizerConfig, loss: float) -> None:
        """Update the factor after a validation. Other schedules and non-finite losses change nothing."""
        if config.schedule != "newbob" or not math.isfinite(loss):
            return
        last = self.last_validation
        if last is not None and last - loss < config.threshold * abs(last):
            self.rate_factor *= config.factor
        self.last_validation = loss
