"""Speed and memory of complete training steps, beside the same steps with the modules of the PyTorch original.

    python benchmarks/train_step.py --batch 16 --seconds 10 --dtype float32 bfloat16
    python benchmarks/train_step.py --original PATH --original-python VENV/bin/python --json result.json

The quantizer stage runs a frozen encoder, compressor, quantizer and decompressor, with feature and entropy loss. The
decoder stage runs a frozen encoder on whole recordings, crops its features to 22 frames, and trains Vocos and the eight
HiFi-GAN discriminators, with log-mel and feature matching loss. Both clip gradients and use AdamW. The original
computes the entropy loss as the public recipe does, with a probability per frame and code. It uses autocast for
bfloat16.

Each side runs in its own process, and the sides take turns, as in `codec.py`. A ratio is the median over turns of the
original's time divided by ours. Weights are random. Peak memory is that of the accelerator, or of the process on a CPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from codec import SAMPLE_RATE_HZ, compare, start, take_turns

Step = Callable[[], None]
STAGES = ("quantizer", "decoder")
CROP_FRAMES = 22


def jax_worker(stage: str, preset: str, batch: int, seconds: float, width: float, dtype: str, config: dict | None):
    """Facts about this worker, and one timed call. `config` is for the other side."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from focalcodec_jax.train import sharding, step_flops
    from focalcodec_jax.train.footprint import abstract_run
    from focalcodec_jax.train.programs import Programs
    from focalcodec_jax.train.run_config import from_dict
    from focalcodec_jax.train.stages import Batch

    run = from_dict(
        {
            "stage": stage,
            "model": {"preset": preset, "dtype": dtype},
            "data": {"batch_size": batch},
            "discriminator": {"width": width},
            "crop_frames": CROP_FRAMES,
            "steps": 1,
        }
    )
    mesh = sharding.make_mesh(run.mesh, batch, jax.devices()[:1])
    trainer, state, frozen = abstract_run(run)
    programs = Programs(trainer, mesh, state.params, frozen)
    rng = np.random.default_rng(0)

    def random(tree):
        host = jax.tree.map(lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), tree)
        return sharding.put(host, sharding.shardings(tree, mesh))

    current = [programs.init(random(state.params), jax.random.key(0))]
    fixed = random(frozen)
    samples = int(seconds * SAMPLE_RATE_HZ)
    sig = jnp.asarray(0.1 * rng.standard_normal((batch, samples), np.float32))
    data = Batch(sig, jnp.full(batch, samples), jnp.asarray(rng.random(batch, np.float32)), jnp.zeros(batch, jnp.int32))
    rate = np.float32(1e-4)
    started = time.perf_counter()
    program = programs.step.lower(current[0], fixed, data, rate).compile()
    compile_seconds = time.perf_counter() - started

    def step() -> None:
        current[0], metrics = program(current[0], fixed, data, rate)
        jax.block_until_ready(metrics)

    device = jax.devices()[0]
    about = {
        "versions": f"jax {jax.__version__}, {device.device_kind}",
        "compile_seconds": compile_seconds,
        "tflop": step_flops.of_step(trainer, state, frozen, data) / 1e12,
        "working_mib": program.memory_analysis().temp_size_in_bytes / 2**20,
        "config": trainer.model.config.to_dict(),
    }
    return about, {"step": step}


def torch_worker(stage: str, preset: str, batch: int, seconds: float, width: float, dtype: str, config: dict | None):
    """As `jax_worker`, with the original's modules on torch's default device and threads."""
    import torch
    from focalcodec.codec import FocalCodec

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = FocalCodec(**(config or {})).to(device)
    model.encoder.requires_grad_(False).eval()
    sig = 0.1 * torch.randn(batch, int(seconds * SAMPLE_RATE_HZ), device=device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def encode():
        with torch.no_grad(), autocast:
            return model.sig_to_feats(sig)

    if stage == "quantizer":
        step = torch_quantizer_step(model, encode, autocast)
    else:
        step = torch_decoder_step(model, encode, autocast, sig, width)

    def timed() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    about = {"versions": f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads"}
    return about, {"step": timed}


def torch_quantizer_step(model, encode, autocast) -> Step:
    import torch
    from torch.nn import functional

    params = [*model.compressor.parameters(), *model.decompressor.parameters()]
    adamw = torch.optim.AdamW(params, 5e-4, (0.9, 0.98), weight_decay=0.01)

    def step() -> None:
        feats = encode()
        with autocast:
            lats = model.feats_to_lats(feats).float()
            bits = lats.shape[-1]
            codes = torch.where(lats > 0, 1.0, -1.0) / bits**0.5
            qfeats = model.codes_to_qfeats(lats + (codes - lats).detach())
        shifts = torch.arange(bits - 1, -1, -1, device=lats.device)
        book = ((torch.arange(2**bits, device=lats.device)[:, None] >> shifts) & 1) * 2.0 - 1
        p = torch.softmax(200 * lats.flatten(0, 1) @ (book.T / bits**0.5), dim=-1)
        mean = p.mean(0)
        per_frame = -(p * p.clamp_min(1e-5).log()).sum(-1).mean()
        codebook = -(mean * mean.clamp_min(1e-5).log()).sum()
        loss = functional.mse_loss(qfeats[:, : feats.shape[1]].float(), feats.float()) + 0.1 * (per_frame - codebook)
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 5.0)
        adamw.step()

    return step


def torch_decoder_step(model, encode, autocast, sig, width: float) -> Step:
    import torch
    from torch.nn import functional

    device = sig.device
    discriminators = torch_discriminators(width).to(device)
    betas = {"betas": (0.8, 0.99), "weight_decay": 0.01}
    adamw = torch.optim.AdamW(model.decoder.parameters(), 2e-4, **betas)
    adamw_discriminators = torch.optim.AdamW(discriminators.parameters(), 2e-4, **betas)
    window = torch.hann_window(1024, device=device)
    basis = torch.rand(80, 513, device=device)  # The values change neither speed nor memory.

    def log_mel(x):
        return (basis @ torch.stft(x, 1024, 320, window=window, return_complex=True).abs()).clamp_min(1e-5).log()

    def step() -> None:
        feats = encode()
        starts = torch.randint(0, feats.shape[1] - CROP_FRAMES + 1, (len(feats),)).tolist()
        crops = torch.stack([f[at : at + CROP_FRAMES] for f, at in zip(feats, starts, strict=True)])
        size = 320 * CROP_FRAMES
        real = torch.stack([s[320 * at : 320 * at + size] for s, at in zip(sig, starts, strict=True)])
        with autocast:
            fake = model.feats_to_sig(crops)[:, :size].float()
            outputs = zip(discriminators(real), discriminators(fake.detach()), strict=True)
            loss = sum(torch.relu(1 - r[-1]).mean() + torch.relu(1 + f[-1]).mean() for r, f in outputs)
        adamw_discriminators.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(discriminators.parameters(), 5.0)
        adamw_discriminators.step()
        with autocast:
            with torch.no_grad():
                outputs_real = discriminators(real)
            outputs_fake = discriminators(fake)
            loss = sum(torch.relu(1 - f[-1]).mean() for f in outputs_fake)
            pairs = [(a, b) for r, f in zip(outputs_real, outputs_fake, strict=True) for a, b in zip(r, f, strict=True)]
            loss = loss + 54 * sum((a - b).abs().mean() for a, b in pairs) / len(pairs)
        loss = loss + 45 * functional.l1_loss(log_mel(fake), log_mel(real))
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 5.0)
        adamw.step()

    return step


def torch_discriminators(width: float):
    """The eight discriminators of HiFi-GAN in their published sizes."""
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.utils import parametrizations

    def channels(full: int) -> int:
        return max(4, round(full * width / 4) * 4)

    class Period(nn.Module):
        def __init__(self, period: int):
            super().__init__()
            self.period = period
            sizes = [1, *(channels(c) for c in (32, 128, 512, 1024, 1024))]
            strides = (3, 3, 3, 3, 1)
            layers = [
                nn.Conv2d(a, b, (5, 1), (s, 1), (2, 0)) for a, b, s in zip(sizes, sizes[1:], strides, strict=False)
            ]
            layers.append(nn.Conv2d(sizes[-1], 1, (3, 1), 1, (1, 0)))
            self.layers = nn.ModuleList(parametrizations.weight_norm(layer) for layer in layers)

        def forward(self, x):
            x = functional.pad(x[:, None], (0, -x.shape[1] % self.period), "reflect")
            return activations(self.layers, x.unflatten(2, (-1, self.period)))

    class Scale(nn.Module):
        def __init__(self, scale: int):
            super().__init__()
            self.scale = scale
            sizes = [1, *(channels(c) for c in (128, 128, 256, 512, 1024, 1024, 1024))]
            kernels, strides, groups = (15, *[41] * 5, 5), (1, 2, 2, 4, 4, 1, 1), (1, 4, *[16] * 4, 1)
            shapes = zip(sizes, sizes[1:], kernels, strides, groups, strict=False)
            layers = [nn.Conv1d(a, b, k, s, k // 2, groups=g) for a, b, k, s, g in shapes]
            layers.append(nn.Conv1d(sizes[-1], 1, 3, 1, 1))
            norm = parametrizations.weight_norm if scale else parametrizations.spectral_norm
            self.layers = nn.ModuleList(norm(layer) for layer in layers)

        def forward(self, x):
            x = x[:, None]
            for _ in range(self.scale):
                x = functional.avg_pool1d(x, 4, 2, 2)
            return activations(self.layers, x)

    def activations(layers, x):
        found = []
        for layer in layers[:-1]:
            x = functional.leaky_relu(layer(x), 0.1)
            found.append(x)
        return [*found, layers[-1](x)]

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.all = nn.ModuleList([*(Period(p) for p in (2, 3, 5, 7, 11)), *(Scale(s) for s in range(3))])

        def forward(self, x):
            return [discriminator(x) for discriminator in self.all]

    torch.manual_seed(0)
    return All()


# --- comparison ------------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace, stage: str, dtype: str) -> dict:
    setup = {"stage": stage, "preset": args.preset, "batch": args.batch, "seconds": args.seconds}
    setup |= {"width": args.width, "dtype": dtype}
    sides = start(args, setup, __file__)
    turns = take_turns(sides, "step", args.repeats)
    about = sides["ours"].about
    row = {"stage": stage, "dtype": dtype, "batch": args.batch, "seconds": args.seconds, "width": args.width}
    row |= {name: about[name] for name in ("compile_seconds", "tflop", "working_mib")}
    for name, answers in turns.items():
        row[name] = {
            "wall_seconds": statistics.median(answer["wall"] for answer in answers),
            "peak_mib": answers[-1]["peak_mib"],
            "versions": sides[name].about["versions"],
        }
    if "original" in turns:
        pairs = zip(turns["original"], turns["ours"], strict=True)
        row["ratio"] = statistics.median(theirs["wall"] / ours["wall"] for theirs, ours in pairs)
    for side in sides.values():
        side.stop()
    return row


def report(preset: str, rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    sides = [name for name in ("ours", "original") if name in rows[0]]
    table = Table(title=f"{preset}; " + "; ".join(rows[0][name]["versions"] for name in sides))
    headings = ["stage", "dtype", "batch × s", *(f"{side}, steps/s" for side in sides), *(["ratio"] * (len(sides) - 1))]
    for heading in (*headings, "TFLOP/s", *(f"{side}, MiB" for side in sides), "compile, s"):
        table.add_column(heading, justify="right")
    for row in rows:
        speeds = [f"{1 / row[side]['wall_seconds']:.3g}" for side in sides]
        ratio = [f"{row['ratio']:.2f}"] if "ratio" in row else []
        rate = row["tflop"] / row["ours"]["wall_seconds"]
        peaks = [f"{row[side]['peak_mib']:.0f}" for side in sides]
        shape = f"{row['batch']} × {row['seconds']:g}"
        table.add_row(
            row["stage"], row["dtype"], shape, *speeds, *ratio, f"{rate:.3g}", *peaks, f"{row['compile_seconds']:.0f}"
        )
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--preset", default="focalcodec_50hz")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10, help="length of each recording")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels of the discriminators")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    compare(parser, {"jax": jax_worker, "torch": torch_worker}, measured, report)


def measured(args: argparse.Namespace) -> list[dict]:
    return [measure(args, stage, dtype) for stage in args.stage for dtype in args.dtype]


if __name__ == "__main__":
    main()
