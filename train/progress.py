"""What a running training measures between two lines of its log, and shows."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn
from rich.table import Column

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.flops import peak_flops

from .log import usage


class Window:
    """Means over the steps between two lines of the log."""

    def __init__(self):
        self.started, self.waited, self.steps = time.monotonic(), 0.0, 0
        self.sums: dict[str, float] = {}
        self.counts: np.ndarray | None = None

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Time within counts as waiting for data."""
        started = time.monotonic()
        yield
        self.waited += time.monotonic() - started

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time within does not count: the speed is that of training."""
        started = time.monotonic()
        yield
        self.started += time.monotonic() - started

    def add(self, values: dict[str, float], counts: np.ndarray | None) -> None:
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if counts is not None:
            self.counts = counts if self.counts is None else self.counts + counts

    @property
    def elapsed(self) -> float:
        return max(time.monotonic() - self.started, 1e-9)

    @property
    def speed(self) -> dict[str, float]:
        hours = self.sums.get("samples", 0) / SAMPLE_RATE_HZ / 3600
        rate = self.sums.get("flop", 0) / self.elapsed
        peak = peak_flops(jax.devices()[0])
        return {
            "steps_per_second": self.steps / self.elapsed,
            "audio_hours_per_second": hours / self.elapsed,
            "data_wait_share": self.waited / self.elapsed,
            "tflops_per_second": rate / 1e12,
        } | ({} if peak is None else {"mfu": rate / (peak * jax.device_count())})

    def means(self) -> dict[str, float]:
        values = {name: value / self.steps for name, value in self.sums.items() if name not in ("samples", "flop")}
        if self.counts is not None:
            values |= usage(self.counts)
        return values | self.speed


TEXT = "loss {task.fields[loss]} · valid {task.fields[valid]} · {task.fields[speed]}"


class Progress:
    """A bar over steps, with the loss, throughput, the share of time spent waiting for data, and the time left."""

    def __init__(self, console: Console, total: int, step: int):
        self.console, self.total = console, total
        self.bar = Bar(
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn(TEXT, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=6)),
            console=console,
            expand=True,
        )
        self.task = self.bar.add_task("", total=total, completed=step, loss="–", valid="–", speed="compiling")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *problem) -> None:
        self.bar.stop()

    def update(self, step: int, loss: float, window: Window) -> None:
        speed = window.speed
        text = (
            f"{speed['steps_per_second']:.2f} steps/s · {speed['audio_hours_per_second']:.3g} audio-h/s · "
            f"{100 * speed['data_wait_share']:.0f} % waiting"
        )
        self.bar.update(self.task, completed=step, loss=f"{loss:.4g}", speed=text)

    def line(self, step: int) -> None:
        """Where nobody watches a bar, in a job's output: the same as a line."""
        if not self.console.is_terminal:
            text = TEXT.format(task=self.bar.tasks[self.task])
            self.console.print(f"step {step}/{self.total} · {text}", highlight=False, soft_wrap=True)

    def validated(self, loss: float) -> None:
        self.bar.update(self.task, valid=f"{loss:.4g}")
