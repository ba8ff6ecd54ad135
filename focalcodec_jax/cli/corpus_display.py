"""Progress and reports that `tokenize` and `detokenize` print."""

import time
from contextlib import ExitStack

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from focalcodec_jax.console import one_line
from focalcodec_jax.corpus import progress as events
from focalcodec_jax.corpus.detokenize import DetokenizeReport
from focalcodec_jax.corpus.dryrun import PlanSummary
from focalcodec_jax.corpus.progress import CorpusEvent, CorpusReport, DeviceUsage
from focalcodec_jax.corpus.tokenize import TokenizeReport
from focalcodec_jax.tokens.formats.base import FAILURES

TEXT = "{task.fields[hours]} · {task.fields[speed]}"
SHOW_SECONDS, LINE_SECONDS, SHOWN_FAILURES = 0.1, 30.0, 10
"""Time between updates of the bar, time between lines if there is no terminal, and number of failures to print."""


class CorpusDisplay:
    """A progress callback that shows a bar over the audio. Without a terminal, it prints a line at intervals.

    Use it as a context manager, which stops the bar at the end.

    Args:
        console: console to print to.
        codec_note: text to print before the codec is loaded.
    """

    def __init__(self, console: Console, codec_note: str | None = None):
        self.console, self.codec_note = console, codec_note
        self.stack = ExitStack()
        self.audio: AudioBar | None = None
        self.failures = 0

    def __enter__(self) -> "CorpusDisplay":
        return self

    def __exit__(self, *problem: object) -> None:
        if self.audio is not None:
            self.audio.close()
        self.stack.close()

    def __call__(self, event: CorpusEvent) -> None:
        match event:
            case events.ListingStarted():
                self._status("listing the recordings")
            case events.CodecLoading():
                if self.codec_note is not None:
                    self.console.print(f"[yellow]{self.codec_note}[/]", soft_wrap=True)
                self._status("loading the codec")
            case events.ListingFinished():
                self.stack.close()
            case events.ProcessingStarted(estimate):
                self.stack.close()
                self.audio = AudioBar(self.console, estimate)
            case events.AudioProcessed():
                assert self.audio is not None
                self.audio.add(event, self.failures)
            case events.RecordingFailed(message):
                self._fail(message)
            case events.ShardKept(number):
                self._print(f"shard {number} stays as it was, because no further recording in it can be read")

    def _status(self, text: str) -> None:
        self.stack.close()
        self.stack.enter_context(self.console.status(text))

    def _print(self, text: str) -> None:
        self.console.print(one_line(text), soft_wrap=True, highlight=False)

    def _fail(self, message: str) -> None:
        self.failures += 1
        if self.failures <= SHOWN_FAILURES:
            self.console.print(f"[yellow]failed:[/] {one_line(message)}", soft_wrap=True, highlight=False)
        elif self.failures == SHOWN_FAILURES + 1:
            self.console.print(f"[yellow]further failures are only counted; {FAILURES} will list all[/]")

    # --- at the end ------------------------------------------------------------------------------------------------

    def tokenized(self, report: TokenizeReport) -> None:
        """Print the report of `tokenize`."""
        if report.open_shards:
            self._print(
                f"{report.open_shards} of {report.shards} shards are not finished; the last process describes the data "
                "set"
            )
        else:
            self._print_data_set(report)
        if report.usage is None:
            return
        usage = report.usage
        mfu = "" if usage.mfu is None else f"; {100 * usage.mfu:.1f} % of the devices' bfloat16 peak"
        self.console.print(
            f"{self._run(report, usage)}; {100 * usage.compiling_share:.0f} % compiling; "
            f"{100 * usage.padding_share:.0f} % of it is padding{mfu}",
            highlight=False,
            soft_wrap=True,
        )
        if report.check is not None:
            check = report.check
            self.console.print(
                f"miss rate {100 * check.miss_rate:.2f} %: {check.differing} of {check.tokens:,} tokens differ in "
                f"{check.recordings} recordings encoded once more, one by one, in float32",
                highlight=False,
                soft_wrap=True,
            )

    def _print_data_set(self, report: TokenizeReport) -> None:
        folder = one_line(report.output)
        self.console.print(
            f"{report.recordings:,} recordings, {report.hours:.2f} h → {report.tokens:,} tokens in "
            f"{report.shards} shard(s) in {folder}; {report.codes_used:,} of {report.codebook_size:,} codes in use, "
            f"{report.token_entropy_bits:.2f} bits of entropy per token",
            highlight=False,
            soft_wrap=True,
        )
        if report.failures:
            self.console.print(
                f"[yellow]{report.failures} recording(s) could not be read; see {folder}/{FAILURES}. "
                "--retry-failed tries them again[/]",
                soft_wrap=True,
            )

    def detokenized(self, report: DetokenizeReport) -> None:
        """Print the report of `detokenize`."""
        if report.usage is not None:
            self.console.print(self._run(report, report.usage), highlight=False, soft_wrap=True)
        if report.open_blocks:
            text = f"{report.open_blocks} of {report.blocks} blocks are left to other processes"
        else:
            text = f"{one_line(report.output)} is complete, {report.failures} failed"
        self.console.print(text, highlight=False)

    def _run(self, report: CorpusReport, usage: DeviceUsage) -> str:
        seconds = report.processed_seconds
        audio = " of audio" if isinstance(report, DetokenizeReport) else ""
        speed = speed_text(seconds, usage, self.failures)
        return f"{seconds / 3600:.2f} h{audio} in {usage.elapsed_seconds:.1f} s, {speed}"


class AudioBar:
    """A bar over seconds of audio.

    Args:
        console: console to show the bar on.
        estimate: estimated seconds of all audio.
    """

    def __init__(self, console: Console, estimate: float):
        self.console, self.estimate = console, estimate
        self.seconds = self.estimated = 0.0
        self.printed, self.shown = time.monotonic(), 0.0
        self.speed = "starting"
        self.bar = Progress(
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn(TEXT, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=6)),
            console=console,
            expand=True,
        )
        self.task = self.bar.add_task("", total=max(estimate, 1e-9), hours="", speed=self.speed)
        self.bar.start()

    def close(self) -> None:
        """Show the final state and stop the bar."""
        self._show()
        self.bar.stop()

    def add(self, event: events.AudioProcessed, failures: int) -> None:
        """Advance the bar.

        Args:
            event: the audio that was processed.
            failures: number of recordings that could not be read so far.
        """
        self.seconds += event.seconds
        self.estimated += event.estimated_seconds
        self.speed = speed_text(self.seconds, event.usage, failures)
        now = time.monotonic()
        if now - self.shown > SHOW_SECONDS:
            self.shown = now
            self._show()
        if not self.console.is_terminal and now - self.printed > LINE_SECONDS:
            self.printed = now
            self.console.print(TEXT.format(task=self.bar.tasks[self.task]), highlight=False, soft_wrap=True)

    def _show(self) -> None:
        ratio = self.seconds / self.estimated if self.estimated else 1.0
        total = max(self.seconds + max(0.0, self.estimate - self.estimated) * ratio, 1e-9)
        unit, name = (3600, "h") if total >= 3600 else (60, "min")
        hours = f"{self.seconds / unit:.1f} of ≈ {total / unit:.1f} {name}"
        self.bar.update(self.task, completed=self.seconds, total=total, hours=hours, speed=self.speed)


def speed_text(seconds: float, usage: DeviceUsage, failures: int) -> str:
    """Text with the processing speed, the use of the devices, and the number of failed recordings."""
    text = (
        f"{seconds / usage.elapsed_seconds:.3g} × real time · devices {100 * usage.busy_share:.0f} % busy, "
        f"{100 * usage.waiting_share:.0f} % waiting for data"
    )
    return text + (f" · {failures} failed" if failures else "")


def print_plan(summary: PlanSummary, console: Console) -> None:
    """Print the result of a dry run."""
    about = "" if summary.sampled == summary.recordings else "about "
    unread = (
        f"; {summary.unreadable} of {summary.sampled} sampled recordings cannot be read" if summary.unreadable else ""
    )
    console.print(
        f"{summary.recordings:,} recordings, {about}{summary.hours:,.2f} h, in {summary.shards} shard(s); {about}"
        f"{summary.tokens:,.0f} tokens{unread}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(title=f"batches of at most {summary.batch_seconds:g} s per device")
    for column in ("length (s)", "rows per device", "recordings or windows"):
        table.add_column(column, justify="right")
    for batch in summary.batches:
        table.add_row(f"{batch.seconds:.2f}", str(batch.rows), f"{100 * batch.share:.1f} %")
    console.print(table)
    if summary.padding_share is not None:
        console.print(f"padding: {100 * summary.padding_share:.1f} % of what is computed", highlight=False)
