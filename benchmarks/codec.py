"""Speed and memory of encoding and decoding, compared with the PyTorch original if it is installed.

    python benchmarks/codec.py --batch 1 4 8
    python benchmarks/codec.py --original PATH --original-python VENV/bin/python --json result.json

Each side runs in its own process with its own interpreter, and answers requests over standard input and output. The
sides take turns (ours, theirs, ours, …), so that other work on the machine slows down both. A ratio is the median over
turns. Each batch size has new processes, so that peak memory is measured separately.

"ratio" is the time of the original divided by ours. "CPU ratio" is the same for CPU time, which depends less on other
work on the machine. Weights are random, because they affect neither speed nor memory. On a CPU, our side processes the
recordings of a batch one by one, as `Codec` does, because batches are slower there.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SAMPLE_RATE_HZ = 16000
REST_SECONDS = 0.3  # the threads of the side that ran last spin for a while
STEPS = ("encode", "decode")


# --- workers; the interpreter of the original may lack our packages, so the imports above are standard ---------------

Step = Callable[[], None]


def jax_worker(preset: str, batch: int, seconds: float, config: dict | None) -> tuple[dict, dict[str, Step]]:
    """Set up this package.

    Args:
        config: unused; the torch worker receives the configuration that this worker returns.

    Returns:
        A description of the worker, and a function to time for each step.
    """
    import jax
    import numpy as np

    from focalcodec_jax.config import CodecConfig
    from focalcodec_jax.nn.codec import FocalCodec

    codec_config = CodecConfig.preset(preset)
    model = FocalCodec(codec_config)
    rng = np.random.default_rng(0)  # model.init would add to peak memory
    variables = jax.tree.map(
        lambda leaf: jax.device_put(0.02 * rng.standard_normal(leaf.shape, np.float32)),
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1000), np.float32)),
    )
    # As in Codec, a CPU processes one recording of this length at a time.
    rows = 1 if jax.default_backend() == "cpu" else batch
    sig = 0.1 * jax.random.normal(jax.random.key(1), (rows, int(seconds * SAMPLE_RATE_HZ)))

    def compiled(method: str, x: jax.Array) -> tuple[Callable, float]:
        start = time.perf_counter()
        step = jax.jit(lambda variables, x: model.apply(variables, x, method=method)).lower(variables, x).compile()
        return step, time.perf_counter() - start

    encode, encode_compile = compiled("sig_to_toks", sig)
    toks = encode(variables, sig)
    decode, decode_compile = compiled("toks_to_sig", toks)
    about = {
        "versions": f"jax {jax.__version__}, {jax.devices()[0].device_kind}",
        "compile_seconds": {"encode": encode_compile, "decode": decode_compile},
        "config": codec_config.to_dict(),
    }
    steps = {
        "encode": lambda: jax.block_until_ready([encode(variables, sig) for _ in range(batch // rows)]),
        "decode": lambda: jax.block_until_ready([decode(variables, toks) for _ in range(batch // rows)]),
    }
    return about, steps


def torch_worker(preset: str, batch: int, seconds: float, config: dict | None) -> tuple[dict, dict[str, Step]]:
    """Set up the original, on its default device and with its default number of threads, as `jax_worker`."""
    import torch
    from focalcodec.codec import FocalCodec

    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = FocalCodec(**(config or {})).eval().to(device)
    sig = 0.1 * torch.randn(batch, int(seconds * SAMPLE_RATE_HZ), device=device)

    def timed(step: Callable, x: "torch.Tensor") -> "torch.Tensor":
        with torch.inference_mode():
            y = step(x)
        if device == "cuda":
            torch.cuda.synchronize()
        return y

    toks = timed(model.sig_to_toks, sig)
    about = {"versions": f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads"}
    steps = {
        "encode": lambda: timed(model.sig_to_toks, sig),
        "decode": lambda: timed(model.toks_to_sig, toks),
    }
    return about, steps


def serve(worker: Callable[..., tuple[dict, dict[str, Step]]]) -> None:
    """Answer requests with one line of JSON each. The first request is the setup; the others are names of steps."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries must not print between the answers

    def answer(message: dict) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        about, steps = worker(**json.loads(sys.stdin.readline()))
    except ImportError as error:
        answer({"error": str(error)})
        return
    answer(about)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        steps[line.strip()]()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer({"wall": wall, "cpu": cpu, "peak_mib": peak_bytes() / 2**20})


def peak_bytes() -> float:
    """Peak memory of the accelerator, or of this process if there is no accelerator."""
    if "jax" in sys.modules:
        import jax

        if stats := jax.devices()[0].memory_stats():
            return stats["peak_bytes_in_use"]
    elif (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


class Worker:
    """One side of the comparison, in its own process."""

    def __init__(self, kind: str, python: str, path: Path | None, setup: dict, script: str = __file__):
        paths = [str(path)] if path else []
        paths += [old] if (old := os.environ.get("PYTHONPATH")) else []
        self.process = subprocess.Popen(
            [python, script, "--worker", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        self.about = self.ask(json.dumps(setup))

    def ask(self, line: str) -> dict:
        print(line, file=self.process.stdin, flush=True)
        reply = self.process.stdout.readline()
        if not reply:
            raise SystemExit(f"A worker ended early, with status {self.process.wait()}.")
        return json.loads(reply)

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


# --- comparison ------------------------------------------------------------------------------------------------------


def start(args: argparse.Namespace, setup: dict, script: str = __file__) -> dict[str, Worker]:
    """Start our worker, and that of the original if it can run.

    Args:
        setup: arguments of the script's workers except `config`.
    """
    root = Path(__file__).resolve().parent.parent
    sides = {"ours": Worker("jax", sys.executable, root, setup | {"config": None}, script)}
    if "error" in sides["ours"].about:
        raise SystemExit(f"Cannot run: {sides['ours'].about['error']}")
    config = sides["ours"].about["config"]
    original = Worker("torch", args.original_python, args.original, setup | {"config": config}, script)
    if "error" in original.about:
        original.stop()
        print(f"Without the original: {original.about['error']}", file=sys.stderr)
    else:
        sides["original"] = original
    return sides


def take_turns(sides: dict[str, Worker], step: str, repeats: int) -> dict[str, list[dict]]:
    """Answers of each side to `repeats` requests, after one request as a warm-up."""
    turns: dict[str, list[dict]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            time.sleep(REST_SECONDS)
            answer = side.ask(step)
            if turn:
                turns[name].append(answer)
    return turns


def measure(args: argparse.Namespace, batch: int) -> list[dict]:
    """Measure one batch size. Returns one row per step."""
    sides = start(args, {"preset": args.preset, "batch": batch, "seconds": args.seconds})
    rows = []
    for step in STEPS:
        turns = take_turns(sides, step, args.repeats)
        rows.append({"step": step, "batch": batch, "seconds": args.seconds} | summary(sides, turns, step))
    for side in sides.values():
        side.stop()
    return rows


def summary(sides: dict[str, Worker], turns: dict[str, list[dict]], step: str) -> dict:
    row = {}
    for name, answers in turns.items():
        row[name] = {
            "wall_seconds": statistics.median(answer["wall"] for answer in answers),
            "cpu_seconds": statistics.median(answer["cpu"] for answer in answers),
            "peak_mib": answers[-1]["peak_mib"],
            "versions": sides[name].about["versions"],
        }
    row["ours"]["compile_seconds"] = sides["ours"].about["compile_seconds"][step]
    if "original" in turns:
        pairs = list(zip(turns["original"], turns["ours"], strict=True))
        for kind in ("wall", "cpu"):
            row[f"{kind}_ratio"] = statistics.median(theirs[kind] / ours[kind] for theirs, ours in pairs)
    return row


def report(preset: str, rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    sides = [name for name in ("ours", "original") if name in rows[0]]
    about = "; ".join(rows[0][name]["versions"] for name in sides)
    title = f"{preset}, {rows[0]['seconds']:g} s of audio: × real time, peak MiB"
    table = Table(title=title, caption=f"{about}; {os.cpu_count()} CPU cores")
    headings = ["step", "batch", *(f"{name}, ×" for name in sides)]
    headings += ["ratio", "CPU ratio"] if len(sides) > 1 else []
    for heading in [*headings, "compile, s", *(f"{name}, MiB" for name in sides)]:
        table.add_column(heading, justify="right")
    for row in rows:
        audio = row["batch"] * row["seconds"]
        speeds = [f"{audio / row[name]['wall_seconds']:.1f}" for name in sides]
        ratios = [f"{row[f'{kind}_ratio']:.2f}" for kind in ("wall", "cpu")] if len(sides) > 1 else []
        peaks = [f"{row[name]['peak_mib']:.0f}" for name in sides]
        table.add_row(row["step"], str(row["batch"]), *speeds, *ratios, f"{row['ours']['compile_seconds']:.1f}", *peaks)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="focalcodec_50hz")
    parser.add_argument("--seconds", type=float, default=10, help="length of each recording")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8])
    compare(parser, {"jax": jax_worker, "torch": torch_worker}, measured, report)


def measured(args: argparse.Namespace) -> list[dict]:
    return [row for batch in args.batch for row in measure(args, batch)]


def compare(
    parser: argparse.ArgumentParser,
    workers: dict[str, Callable[..., tuple[dict, dict[str, Step]]]],
    measured: Callable[[argparse.Namespace], list[dict]],
    report: Callable[[str, list[dict]], None],
) -> None:
    """Run the command of a benchmark: measure and report, or act as one of its workers.

    Args:
        parser: parser with the options of the benchmark.
        workers: functions that set up each side.
        measured: runs the measurements. Returns one row per measurement.
        report: prints the rows for a preset.
    """
    parser.add_argument("--repeats", type=int, default=7, help="timed turns of each side")
    parser.add_argument("--original", type=Path, help="folder that holds the original's package `focalcodec`")
    parser.add_argument("--original-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--worker", choices=tuple(workers), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(workers[args.worker])
        return
    rows = measured(args)
    report(args.preset, rows)
    if args.json:
        machine = f"{platform.machine()}, {os.cpu_count()} CPU cores"
        args.json.write_text(json.dumps({"preset": args.preset, "machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
