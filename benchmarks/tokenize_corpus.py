"""Speed and memory of tokenizing audio files, from disk to token files, compared with the PyTorch original.

    python benchmarks/tokenize_corpus.py FOLDER
    python benchmarks/tokenize_corpus.py FOLDER --original PATH --original-python VENV/bin/python --json result.json
    python benchmarks/tokenize_corpus.py FOLDER --copies 1 10 100 --preset demo         # memory and speed by hours

Our side calls `focalcodec_jax.tokenize`, which reads in worker processes, batches by length and writes Parquet. A run
includes loading the codec and its programs, which a run before has compiled and cached on disk.

The original reads the same files and writes JSONL, and the faster of two loops counts. One loop takes one file at a
time, as its users do. The other takes padded batches of files sorted by length, which changes its tokens, and is only
measured for speed. Both sides take turns as in `codec.py`. Weights are random, except for `--preset demo`.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from codec import compare, start

SAMPLE_RATE_HZ = 16000
BATCH = 8
Step = Callable[[], None]


def jax_worker(
    preset: str, folders: list[str], dtype: str, batch_seconds: float | None, workers: int, config: dict | None
) -> tuple[dict, dict[str, Step]]:
    """One timed run per folder. Each run prints to standard error how busy the devices were."""
    import jax
    import numpy as np

    from focalcodec_jax import TokenizeOptions, save_pretrained, tokenize
    from focalcodec_jax.config import CodecConfig
    from focalcodec_jax.inference import keep_compiled
    from focalcodec_jax.nn.codec import FocalCodec
    from focalcodec_jax.pretrained import structure

    keep_compiled()
    scratch = tempfile.mkdtemp()
    if preset == "demo":
        checkpoint = "demo"
    else:
        checkpoint, model = scratch, FocalCodec(CodecConfig.preset(preset))
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1000), np.float32))
        save_pretrained(scratch, model, jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), shapes))
    options = TokenizeOptions(checkpoint, workers=workers, batch_seconds=batch_seconds, dtype=dtype, check=0)

    def run(folder: str) -> None:
        output = tempfile.mkdtemp(dir=scratch)
        usage = tokenize(folder, output, options).usage
        shutil.rmtree(output)
        print(usage, file=sys.stderr)

    about = {
        "versions": f"jax {jax.__version__}, {jax.devices()[0].device_kind}",
        "config": structure(checkpoint, dtype=dtype).to_dict(),
    }
    return about, {folder: lambda folder=folder: run(folder) for folder in folders}


def torch_worker(
    preset: str, folders: list[str], dtype: str, batch_seconds: float | None, workers: int, config: dict | None
) -> tuple[dict, dict[str, Step]]:
    """The same for the original, on its default device and threads. Steps are named FOLDER:FILES_PER_BATCH."""
    import soundfile
    import torch
    from focalcodec.codec import FocalCodec

    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = FocalCodec(**(config or {})).eval().to(device)

    def read(path: Path) -> "torch.Tensor":
        return torch.from_numpy(soundfile.read(path, dtype="float32")[0])

    def run(folder: str, batch: int) -> None:
        files = sorted(Path(folder).rglob("*.flac"), key=lambda path: soundfile.info(path).frames if batch > 1 else 0)
        with torch.inference_mode(), tempfile.TemporaryFile("w") as output:
            for first in range(0, len(files), batch):
                names = files[first : first + batch]
                sig = torch.nn.utils.rnn.pad_sequence([read(name) for name in names], batch_first=True)
                for name, toks in zip(names, model.sig_to_toks(sig.to(device)).tolist(), strict=True):
                    output.write(json.dumps({"id": name.stem, "tokens": toks}) + "\n")

    about = {"versions": f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads"}
    steps = {f"{folder}:{n}": lambda folder=folder, n=n: run(folder, n) for folder in folders for n in (1, BATCH)}
    return about, steps


def measured(args: argparse.Namespace) -> list[dict]:
    """Measure one row for each number of copies."""
    import soundfile

    files = sorted(args.folder.rglob("*.flac"))[: args.files]
    hours = sum(soundfile.info(file).duration for file in files) / 3600
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = [_copied(Path(scratch, str(count)), files, count) for count in args.copies]
        setup = {"dtype": args.dtype, "batch_seconds": args.batch_seconds, "workers": args.workers}
        sides = start(args, {"preset": args.preset, "folders": folders, **setup}, __file__)
        for folder, count in zip(folders, args.copies, strict=True):
            rows.append(measure(sides, folder, args.repeats) | {"hours": hours * count, "files": len(files) * count})
        for side in sides.values():
            side.stop()
    return rows


def _copied(folder: Path, files: list[Path], count: int) -> str:
    for copy in range(count):
        (folder / str(copy)).mkdir(parents=True)
        for file in files:
            os.symlink(file.resolve(), folder / str(copy) / file.name)
    return str(folder)


def measure(sides: dict, folder: str, repeats: int) -> dict:
    """Median seconds of each side, the faster loop of the original, and the median ratio over turns."""
    sides["ours"].ask(folder)  # compiles
    turns: dict[str, list[dict]] = {}
    names = {"ours": folder}
    if "original" in sides:
        names |= {"one by one": f"{folder}:1", f"batches of {BATCH}": f"{folder}:{BATCH}"}
    for _ in range(repeats):
        for name, step in names.items():
            side = sides["ours" if name == "ours" else "original"]
            turns.setdefault(name, []).append(side.ask(step))
    row = {
        name: {
            "wall_seconds": statistics.median(answer["wall"] for answer in answers),
            "peak_mib": answers[-1]["peak_mib"],
        }
        for name, answers in turns.items()
    }
    if loops := [name for name in names if name != "ours"]:
        best = min(loops, key=lambda name: row[name]["wall_seconds"])
        pairs = zip(turns[best], turns["ours"], strict=True)
        row |= {"best": best, "ratio": statistics.median(a["wall"] / b["wall"] for a, b in pairs)}
    return row | {"versions": [side.about["versions"] for side in sides.values()]}


def report(preset: str, rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    sides = [name for name, value in rows[0].items() if isinstance(value, dict)]
    table = Table(title=f"{preset}: × real time, peak MiB", caption="; ".join(rows[0]["versions"]))
    for heading in ("files", "hours", *sides, "ratio to the best", *(f"{name}, MiB" for name in sides)):
        table.add_column(heading, justify="right")
    for row in rows:
        speeds = [f"{row['hours'] * 3600 / row[name]['wall_seconds']:.1f}" for name in sides]
        peaks = [f"{row[name]['peak_mib']:.0f}" for name in sides]
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else "–"
        table.add_row(str(row["files"]), f"{row['hours']:.2f}", *speeds, ratio, *peaks)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of FLAC files of 16 kHz, such as LibriSpeech")
    parser.add_argument("--preset", default="focalcodec_50hz")
    parser.add_argument("--files", type=int, help="maximum number of files")
    parser.add_argument("--copies", type=int, nargs="+", default=[1], help="numbers of copies of the folder to measure")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-seconds", type=float)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    compare(parser, {"jax": jax_worker, "torch": torch_worker}, measured, report)


if __name__ == "__main__":
    main()
