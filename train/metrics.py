"""Metrics of a run: means between lines of the log, and checks that stop a run."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

import jax
import numpy as np

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import TrainingError
from focalcodec_jax.flops import peak_flops

from .progress import Speed


class MetricsWindow:
    """Means over the steps between two lines of the log."""

    def __init__(self):
        self.started, self.waited, self.steps = time.monotonic(), 0.0, 0
        self.sums: dict[str, float] = {}
        self.counts: np.ndarray | None = None

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Count the time in the block as waiting for data."""
        started = time.monotonic()
        yield
        self.waited += time.monotonic() - started

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time in the block, so that the speed is that of training."""
        started = time.monotonic()
        yield
        self.started += time.monotonic() - started

    def add(self, values: Mapping[str, float], counts: np.ndarray | None) -> None:
        """Add the scalars and the code counts of one step."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if counts is not None:
            self.counts = counts if self.counts is None else self.counts + counts

    @property
    def speed(self) -> Speed:
        """Speed since the start of the window."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rate, peak = self.sums.get("flop", 0) / elapsed, peak_flops(jax.devices()[0])
        return Speed(
            steps_per_second=self.steps / elapsed,
            audio_hours_per_second=self.sums.get("samples", 0) / SAMPLE_RATE_HZ / 3600 / elapsed,
            data_wait_share=self.waited / elapsed,
            tflops_per_second=rate / 1e12,
            mfu=None if peak is None else rate / (peak * jax.device_count()),
        )

    def means(self) -> dict[str, float]:
        """Means and speeds for a line of the log."""
        values = {name: value / self.steps for name, value in self.sums.items() if name not in ("samples", "flop")}
        if self.counts is not None:
            values |= code_usage(self.counts)
        return values | {name: value for name, value in asdict(self.speed).items() if value is not None}


def code_usage(counts: np.ndarray) -> dict[str, float]:
    """Share of the codes that were used, and their entropy relative to that of uniform use.

    Args:
        counts: (codes,) number of uses of each code.
    """
    share = counts[counts > 0] / max(counts.sum(), 1)
    return {
        "code_usage": len(share) / len(counts),
        "normalised_entropy": float(-(share * np.log(share)).sum() / math.log(len(counts))),
    }


class UnreadableRecordings:
    """Counts unreadable recordings, and stops a run that has too many.

    Args:
        allowed_share: share of the recordings that may be unreadable.
        corpus: number of recordings of the corpus. In the first epoch, the share is relative to this number.
    """

    def __init__(self, allowed_share: float, corpus: int):
        self.allowed_share, self.corpus = allowed_share, corpus
        self.read, self.bad = 0, 0
        self.named: set[str] = set()

    def new(self, reasons: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Yield the recordings, as (id, reason), that were not reported before."""
        for name, reason in reasons:
            if name not in self.named:
                self.named.add(name)
                yield name, reason

    def add(self, read: int, bad: int) -> None:
        """Count the recordings of a step.

        Args:
            read: number of recordings of the step.
            bad: number of unreadable ones.

        Raises:
            TrainingError: more than the allowed share is unreadable.
        """
        self.read += read
        self.bad += bad
        if self.bad > self.allowed_share * max(self.read, self.corpus):
            raise TrainingError(
                f"{self.bad} recordings could not be read, more than data.max_bad_share {self.allowed_share:g} of them"
                + (f", such as {', '.join(sorted(self.named)[:3])}" if self.named else "; other processes name them")
            )


def check_finite(step: int, values: Mapping[str, float], patience: int, latest: int | None) -> None:
    """Check that the gradients of a run do not stay non-finite.

    Args:
        step: number of the step.
        values: scalars of the step, with the number of consecutive skipped updates of each network.
        patience: number of consecutive skipped updates that stops the run.
        latest: step of the newest checkpoint.

    Raises:
        TrainingError: too many consecutive updates were skipped. The message names the losses that were not finite.
    """
    for network in ("discriminator", "generator"):
        if values.get(f"{network}/not_finite", 0) >= patience:
            wrong = [name for name, value in values.items() if name.startswith("loss/") and not math.isfinite(value)]
            what = ", ".join(wrong) or f"the {network}'s gradient"
            raise TrainingError(
                f"stopped at step {step}: {what} was NaN or infinite for {patience} steps in a row. The "
                f"updates of the {network} were skipped; the last checkpoint is of step {latest}"
            )
