"""Plot the metrics of training runs."""

from collections.abc import Sequence
from pathlib import Path

from focalcodec_jax.errors import CheckpointError, FocalCodecError
from focalcodec_jax.files import one_or_more, written_whole

from .log import METRICS, read_lines

Curves = dict[str, dict[str, list[tuple[int, float]]]]
"""Points (step, value) of each scalar, by split and name."""
ORDER = ("loss/", "score/", "code_usage", "normalised_entropy", "entropy_", "generator/", "discriminator/", "learning")
LEFT_OUT = ("not_finite", "epoch")
STYLES = {"train": {"lw": 0.8, "alpha": 0.7}, "valid": {"lw": 1.6, "marker": ".", "ls": "--"}}
LOGARITHMIC = ("_norm", "learning_rate")


def draw_curves(runs: str | Path | Sequence[str | Path], output: str | Path) -> None:
    """Plot one panel per scalar, with one colour per run. Training has thin lines, and validation has markers.

    Args:
        runs: run folders.
        output: image file in a format of matplotlib, such as `curves.png`.

    Raises:
        CheckpointError: a folder has no `metrics.jsonl`, or the file contains no measurement.
        FocalCodecError: matplotlib does not support the format of `output`.
        OSError: the image cannot be written.
    """
    from matplotlib.figure import Figure

    output = Path(output)
    figure = Figure(layout="constrained")
    if output.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise FocalCodecError(f"{output} does not end in a picture format; .png always works", parameter="output")
    curves = {Path(run): load_curves(Path(run)) for run in one_or_more(runs)}
    names = sorted({name for splits in curves.values() for split in splits.values() for name in split}, key=_rank)
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure.set_size_inches(4 * columns, 2.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        _draw_panel(axis, name, curves)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    for axis in axes[max(0, len(names) - columns) : len(names)]:
        axis.set_xlabel("step", fontsize=8)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    with written_whole(output) as part:
        figure.savefig(part, dpi=110)


def _draw_panel(axis, name: str, curves: dict[Path, Curves]) -> None:
    """Draw one scalar of all runs."""
    for number, (run, splits) in enumerate(curves.items()):
        for split, style in STYLES.items():
            points = splits[split].get(name, [])
            if points:
                label = f"{run.name} {split}"
                axis.plot(*zip(*points, strict=True), color=f"C{number}", label=label, **style)
    axis.set_title(name, fontsize=9)
    axis.tick_params(labelsize=7)
    if name.endswith(LOGARITHMIC):
        axis.set_yscale("log")


def load_curves(run: Path) -> Curves:
    """Read the `metrics.jsonl` of a run.

    Raises:
        CheckpointError: there is no such file, or it contains no measurement.
    """
    path = run / METRICS
    if not path.is_file():
        raise CheckpointError(f"{run} contains no {METRICS}; give a run folder of `train run`")
    splits: Curves = {"train": {}, "valid": {}}
    for line in read_lines(path):
        for name, value in line.items():
            if line["split"] in splits and name not in ("step", "split") and not name.endswith(LEFT_OUT):
                splits[line["split"]].setdefault(name, []).append((line["step"], value))
    if not any(splits.values()):
        raise CheckpointError(f"{path} contains no measurement yet")
    return splits


def _rank(name: str) -> tuple[int, str]:
    """Sorting key of a scalar: the position of its prefix in `ORDER`, and its name."""
    return next((place for place, prefix in enumerate(ORDER) if name.startswith(prefix)), len(ORDER)), name
