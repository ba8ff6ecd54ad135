"""What a long run over a corpus shows: hours of audio, speed, whether the devices are busy, and what failed."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn
from rich.table import Column

from focalcodec_jax.console import one_line
from focalcodec_jax.corpus.engine import Meter

TEXT = "{task.fields[hours]} · {task.fields[speed]}"
SHOW_SECONDS, LINE_SECONDS, SHOWN_FAILURES = 0.1, 30.0, 10


class Progress:
    """A bar over seconds of audio; where nobody watches, in a job's output, a line now and then.

    Args:
        estimate: seconds of audio that there seem to be.
    """

    def __init__(self, console: Console, estimate: float, meter: Meter):
        self.console, self.estimate, self.meter = console, estimate, meter
        self.seconds = self.estimated = 0.0
        self.failures = 0
        self.said, self.shown = time.monotonic(), 0.0
        self.bar = Bar(
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn(TEXT, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=6)),
            console=console,
            expand=True,
        )
        self.task = self.bar.add_task("", total=max(estimate, 1e-9), hours="", speed="starting")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *problem) -> None:
        self._show()
        self.bar.stop()

    def add(self, seconds: float, estimated: float) -> None:
        """A recording is done that lasted `seconds` and was thought to last `estimated`."""
        self.seconds += seconds
        self.estimated += estimated
        now = time.monotonic()
        if now - self.shown > SHOW_SECONDS:
            self.shown = now
            self._show()
        if not self.console.is_terminal and now - self.said > LINE_SECONDS:
            self.said = now
            self.console.print(TEXT.format(task=self.bar.tasks[self.task]), highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self.console.print(one_line(text), soft_wrap=True, highlight=False)

    def failed(self, reason: str) -> None:
        self.failures += 1
        if self.failures <= SHOWN_FAILURES:
            self.console.print(f"[yellow]failed:[/] {one_line(reason)}", soft_wrap=True, highlight=False)
        elif self.failures == SHOWN_FAILURES + 1:
            self.console.print("[yellow]further failures are only counted; failures.jsonl will list all[/]")

    def _show(self) -> None:
        ratio = self.seconds / self.estimated if self.estimated else 1.0
        total = max(self.seconds + max(0.0, self.estimate - self.estimated) * ratio, 1e-9)
        self.bar.update(self.task, completed=self.seconds, total=total, hours=self._hours(total), speed=self.speed)

    def _hours(self, total: float) -> str:
        unit, name = (3600, "h") if total >= 3600 else (60, "min")
        return f"{self.seconds / unit:.1f} of ≈ {total / unit:.1f} {name}"

    @property
    def speed(self) -> str:
        meter = self.meter
        text = (
            f"{self.seconds / meter.elapsed:.3g} × real time · devices {100 * meter.busy_share:.0f} % busy, "
            f"{100 * meter.waiting_share:.0f} % waiting for data"
        )
        return text + (f" · {self.failures} failed" if self.failures else "")
