"""Stop a run on SIGTERM, which clusters send before they reclaim a machine, or on Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


class Stop:
    """Records whether SIGTERM or Ctrl-C asked the run to stop. All processes stop after the same step."""

    def __init__(self):
        self.asked = False

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked

    @property
    def now(self) -> bool:
        """Whether to also interrupt work between two steps. This is False with several processes, which must agree."""
        return jax.process_count() == 1 and self.asked

    def ask(self, *_) -> None:
        """Ask the run to stop. This is a signal handler."""
        self.asked = True


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """Handle SIGTERM and Ctrl-C. With several processes, JAX handles SIGTERM and finds a step that all reach."""
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
