"""Stopping a run from outside: by SIGTERM, as clusters do before they take a machine away, or by Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


class Stop:
    """Whether to stop after a step: asked by SIGTERM or Ctrl-C, and agreed on by all processes."""

    def __init__(self):
        self.asked = False

    def __call__(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked

    @property
    def now(self) -> bool:
        """Whether to leave off what is between two steps, too. Several processes have no way to agree on it there."""
        return jax.process_count() == 1 and self.asked

    def ask(self, *_) -> None:
        self.asked = True


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """Among processes, JAX listens for SIGTERM and finds a step that all of them reach."""
    stop = Stop()
    if jax.process_count() > 1:
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
