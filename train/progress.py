"""What a running training shows."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from focalcodec_jax.train.loop import Window


class Progress:
    """A bar over steps, with the loss, throughput, the share of time spent waiting for data, and the time left."""

    def __init__(self, console: Console, total: int, step: int):
        self.bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]} · valid {task.fields[valid]} · {task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("", total=total, completed=step, loss="–", valid="–", speed="compiling")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *problem) -> None:
        self.bar.stop()

    def update(self, step: int, loss: float, window: "Window") -> None:
        speed = window.speed
        text = (
            f"{speed['steps_per_second']:.2f} steps/s · {speed['audio_hours_per_second']:.3g} audio-h/s · "
            f"{100 * speed['data_wait_share']:.0f} % waiting"
        )
        self.bar.update(self.task, completed=step, loss=f"{loss:.4g}", speed=text)

    def validated(self, loss: float) -> None:
        self.bar.update(self.task, valid=f"{loss:.4g}")
