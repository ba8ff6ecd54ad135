"""Progress of the training commands, and the tables of the dry run."""

from contextlib import ExitStack

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from focalcodec_jax.console import one_line
from focalcodec_jax.train.footprint import Footprint, MemoryRow, ParameterRow
from focalcodec_jax.train.progress import PrepareProgress, ProgressEvent, RunMessage, StepProgress, ValidationProgress
from focalcodec_jax.train.start import as_plain_yaml

STEP_TEXT = "loss {task.fields[loss]} · valid {task.fields[valid]} · {task.fields[speed]}"
COLORS = {"info": "{}", "warning": "[yellow]{}[/]"}


class ProgressDisplay:
    """Shows the events of a run or of `prepare`, as a bar on a terminal and as plain lines elsewhere."""

    def __init__(self, console: Console):
        self.console = console
        self.open = ExitStack()
        self.bar: Progress | None = None

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *problem) -> None:
        self.open.close()

    def __call__(self, event: ProgressEvent) -> None:
        """Show one event. This is the progress callback."""
        if self.bar is None:
            self.open.close()  # A phase ends with the next event.
        match event:
            case RunMessage(text, "phase"):
                self.open.enter_context(self.console.status(text))
            case RunMessage(text, level):
                self.console.print(COLORS[level].format(one_line(text)), soft_wrap=True, highlight=False)
            case StepProgress():
                self._step(event)
            case ValidationProgress(_, loss):
                self._update(valid=f"{loss:.4g}")
            case PrepareProgress(recordings, total, hours):
                if self.bar is None:
                    self._start(_prepare_columns(), False, "recordings", total=total, hours=hours)
                self._update(completed=recordings, hours=hours)

    def _start(self, columns: tuple[ProgressColumn, ...], expand: bool, description: str, **fields) -> None:
        self.bar = self.open.enter_context(Progress(*columns, console=self.console, expand=expand))
        self.task = self.bar.add_task(description, **fields)

    def _update(self, **fields) -> None:
        if self.bar is not None:
            self.bar.update(self.task, **fields)

    def _step(self, event: StepProgress) -> None:
        if self.bar is None:
            columns, step, total = _step_columns(), event.step, event.total
            self._start(columns, True, "", total=total, completed=step, loss="–", valid="–", speed="compiling")
        if event.loss is None or event.speed is None:
            return
        speed = (
            f"{event.speed.steps_per_second:.2f} steps/s · {event.speed.audio_hours_per_second:.3g} audio-h/s · "
            f"{100 * event.speed.data_wait_share:.0f} % waiting"
        )
        self._update(completed=event.step, loss=f"{event.loss:.4g}", speed=speed)
        if event.logged and not self.console.is_terminal and self.bar is not None:
            text = STEP_TEXT.format(task=self.bar.tasks[self.task])
            self.console.print(f"step {event.step}/{event.total} · {text}", highlight=False, soft_wrap=True)


def _step_columns() -> tuple[ProgressColumn, ...]:
    return (
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn(STEP_TEXT, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=6)),
    )


def _prepare_columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[hours]:.2f} h"),
        TimeRemainingColumn(),
    )


def show_footprint(footprint: Footprint, console: Console, device_kind: str | None) -> None:
    """Print the configuration, the mesh, and the memory and operations of a run.

    Args:
        footprint: result of `dry_run`.
        console: console to print to.
        device_kind: kind of the devices of this machine. None if the dry run is for other devices.
    """
    content = as_plain_yaml(footprint.config.to_dict())
    console.print(yaml.safe_dump(content, sort_keys=False), highlight=False)
    sizes = " × ".join(f"{axis} {size}" for axis, size in footprint.mesh.items())
    devices = footprint.num_devices
    console.print(f"mesh: {sizes}" + (f" on {devices} × {device_kind}" if device_kind else ""))
    console.print(_parameter_table(footprint.parameters))
    console.print(_memory_table(footprint.memory))
    console.print(
        f"step of {footprint.batch_size} × {footprint.batch_seconds:g} s: {footprint.step_flop / 1e12:.3g} TFLOP, "
        f"{footprint.step_flop / devices / 1e12:.3g} per device (matrix products and convolutions)"
    )


def _parameter_table(rows: tuple[ParameterRow, ...]) -> Table:
    table = Table(title="parameters")
    for column in ("part", "sharding", "arrays", "parameters (M)"):
        table.add_column(column, justify="right" if column[0] == "a" or "(" in column else "left")
    for row in rows:
        name = f"{row.network}: {row.part}"
        table.add_row(name, row.sharding, str(row.arrays), f"{row.parameters / 1e6:.3f}")
    return table


def _memory_table(rows: tuple[MemoryRow, ...]) -> Table:
    table = Table(title="memory kept between steps (MiB); activations of a step need additional memory")
    for column in ("what", "all", "per device"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        sizes = (f"{size / 2**20:.1f}" for size in (row.total_bytes, row.bytes_per_device))
        table.add_row(row.what, *sizes, style="bold" if row is rows[-1] else None)
    return table
