"""What the training commands show of the library's progress events."""

import io

from rich.console import Console

from focalcodec_jax.cli.train_progress import ProgressDisplay
from focalcodec_jax.train.progress import PrepareProgress, RunMessage, Speed, StepProgress, ValidationProgress

SPEED = Speed(2.0, 0.004, 0.25, 0.1, None)


def shown(*events, terminal: bool = False) -> str:
    output = io.StringIO()
    with ProgressDisplay(Console(file=output, force_terminal=terminal, width=120)) as display:
        for event in events:
            display(event)
    return output.getvalue()


def test_a_job_output_has_one_line_per_line_of_the_log():
    text = shown(
        RunMessage("loading the codec", "phase"),
        RunMessage("3 recordings, 0.10 h"),
        StepProgress(4, 10),
        StepProgress(5, 10, 1.5, SPEED, logged=False),
        RunMessage("skipped [bold]name: not\naudio", "warning"),
        ValidationProgress(5, 1.25),
        StepProgress(6, 10, 1.0, SPEED, logged=True),
        RunMessage("done: 10 steps"),
    )
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines[:4] == [
        "3 recordings, 0.10 h",
        "skipped [bold]name: not audio",
        "step 6/10 · loss 1 · valid 1.25 · 2.00 steps/s · 0.004 audio-h/s · 25 % waiting",
        "done: 10 steps",
    ]
    assert "1.5" not in text


def test_a_terminal_shows_phases_and_a_bar():
    text = shown(
        RunMessage("loading the codec", "phase"), StepProgress(0, 10), StepProgress(6, 10, 1.0, SPEED), terminal=True
    )
    assert "loading the codec" in text
    assert "6/10" in text
    assert "step 6" not in text


def test_prepare_counts_recordings_and_hours():
    text = shown(RunMessage("looking", "phase"), PrepareProgress(0, 8, 0.0), PrepareProgress(8, 8, 0.5))
    assert "8/8" in text
    assert "0.50 h" in text
