"""What `export-stablehlo` writes computes what the model computes, on any machine with jax, or says why it cannot."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import typer
from jax import export
from support.golden import load_golden

from focalcodec_jax import ConfigError, FocalCodecError
from focalcodec_jax.config import PRESETS
from focalcodec_jax.export import programs as serving
from focalcodec_jax.export.loader import ServingError, load
from focalcodec_jax.nn import lengths as count, wavlm

SAMPLES = (1, 1001, 12345)
"""Of a batch; the model's side is then a program that test_padding.py compiles as well."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """exported(name): the folder of a golden model's export."""

    @cache
    def write(name: str) -> Path:
        golden, folder = load_golden(name), tmp_path_factory.mktemp(name)
        with checks_off():
            serving.export_stablehlo(golden.model, golden.variables, folder, checkpoint=name)
        return folder

    return write


class checks_off:  # noqa: N801 - reads as a function
    """A symbolic length is no int, as annotations say that it is, so that exports are traced without their checks."""

    def __enter__(self):
        jaxtyping.config.update("jaxtyping_disable", True)

    def __exit__(self, *_):
        jaxtyping.config.update("jaxtyping_disable", False)


def recordings(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(0, 0.3, (len(sizes), max(sizes))).astype(np.float32), np.array(sizes, np.int32)


@pytest.mark.parametrize("name", ["offline_50hz", "offline_12_5hz", "causal_2k_vocos"])
def test_equals_the_model(name: str, exported):
    golden, codec = load_golden(name), load(exported(name))
    config = golden.model.config
    sig, samples = recordings(SAMPLES)
    toks, tokens = codec.encode(sig, samples)
    np.testing.assert_array_equal(tokens, count.samples_to_tokens(config, samples))
    real = np.arange(toks.shape[1]) < tokens[:, None]
    np.testing.assert_array_equal(toks, np.where(real, golden.apply("sig_to_toks", sig, samples), 0))

    decoded, samples = codec.decode(np.where(real, toks, -1), tokens)  # past an item's end is anything
    np.testing.assert_array_equal(samples, count.tokens_to_samples(config, tokens))
    np.testing.assert_allclose(decoded, golden.apply("toks_to_sig", toks, tokens), atol=1e-5)


SCRIPT = """
import sys
sys.modules |= dict.fromkeys(("focalcodec_jax", "flax", "jaxtyping", "safetensors", "typer"))  # None: not to be had
import numpy as np
from load import load

codec, made = load(), {}
inputs = np.load("inputs.npz")
for name in "ab":
    toks, tokens = codec.encode(inputs[name], inputs[f"{name}_lengths"])
    sig, _ = codec.decode(toks, tokens)
    made |= {f"{name}_toks": toks, f"{name}_lengths": tokens, f"{name}_sig": sig}
np.savez("made.npz", rate=codec.sample_rate_out_hz, **made)
"""


def test_needs_jax_and_flatbuffers_alone(exported, tmp_path: Path):
    """The copied loader in another process, on a causal model from 16 to 24 kHz: one export, two shapes."""
    golden = load_golden("causal_ragged")
    folder = shutil.copytree(exported("causal_ragged"), tmp_path / "elsewhere")
    batches = {"a": recordings((300, 2000)), "b": recordings((6500, 5000, 700))}
    lengths = {f"{name}_lengths": samples for name, (_, samples) in batches.items()}
    np.savez(folder / "inputs.npz", **{name: sig for name, (sig, _) in batches.items()}, **lengths)
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, check=True, env=os.environ | {"PYTHONPATH": ""})
    with np.load(folder / "made.npz") as made:
        assert made["rate"] == 24000
        for name, (sig, samples) in batches.items():
            toks, tokens = made[f"{name}_toks"], made[f"{name}_lengths"]
            np.testing.assert_array_equal(tokens, count.samples_to_tokens(golden.model.config, samples))
            real = np.arange(toks.shape[1]) < tokens[:, None]
            np.testing.assert_array_equal(toks, np.where(real, golden.apply("sig_to_toks", sig, samples), 0))
            np.testing.assert_allclose(made[f"{name}_sig"], golden.apply("toks_to_sig", toks, tokens), atol=1e-5)


@pytest.mark.parametrize("name", ["offline_50hz", "causal_ragged"])
def test_programs_are_for_every_platform_and_exact(name: str, exported):
    for program in ("encode", "decode"):
        file = exported(name) / f"{program}.stablehlo"
        assert b".py" in file.read_bytes()
        assert str(Path(serving.__file__).parent).encode() not in file.read_bytes(), "a path of this machine"
        loaded = export.deserialize(bytearray(file.read_bytes()))
        assert loaded.platforms == ("cpu", "cuda", "tpu")
        products = re.findall(r"stablehlo\.(?:dot_general|convolution|dot)[^\n]*", loaded.mlir_module())
        assert len(products) > 10
        assert all("HIGHEST" in product for product in products), products


def test_says_what_a_caller_must_know(exported):
    about = json.loads((exported("offline_12_5hz") / "serving.json").read_text())
    assert about["checkpoint"] == "offline_12_5hz"
    assert (about["sample_rate_hz"], about["sample_rate_out_hz"], about["token_rate_hz"]) == (16000, 16000, 12.5)
    assert (about["codebook_size"], about["platforms"]) == (8192, ["cpu", "cuda", "tpu"])
    assert about["encode"]["step"] * 7 + about["encode"]["extra"] == 16000 * 7 // 12.5 + 80
    assert set(about["sha256"]) == {"encode.stablehlo", "encode.npz", "decode.stablehlo", "decode.npz"}


@pytest.mark.parametrize("frames", [1, 50, 900])
def test_relative_bias_of_symbolic_sizes(frames: int):
    """The form that a symbolic number of frames allows equals the plain one, near and far."""
    config = PRESETS["focalcodec_50hz"].encoder
    module = wavlm.RelativeBias(config)
    variables = module.init(jax.random.key(0), 1)
    relative = np.arange(frames)[None] - np.arange(frames)[:, None]
    bucket = wavlm.relative_position_bucket(relative, config.num_buckets, config.max_distance)
    plain = jnp.moveaxis(variables["params"]["embedding"][bucket], -1, 0)
    np.testing.assert_array_equal(module.apply(variables, frames), plain)


# --- what is refused


def test_exporting_refuses(tmp_path: Path, exported):
    golden = load_golden("offline_50hz")

    def write(folder: Path, platforms: tuple[str, ...] = ("cpu",)) -> None:
        serving.export_stablehlo(golden.model, golden.variables, folder, platforms)

    with pytest.raises(ConfigError, match="no platform is called 'gpu'; give some of cpu,cuda,tpu"):
        write(tmp_path / "new", ("cpu", "gpu"))
    with pytest.raises(ConfigError, match="no platform is given"):
        write(tmp_path / "new", ())
    assert not (tmp_path / "new").exists()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FocalCodecError, match=r"holds something else \(thesis.tex\)"):
        write(tmp_path)
    with pytest.raises(FocalCodecError, match="is a file"):
        write(tmp_path / "thesis.tex")


def test_command(tmp_path: Path, capsys):
    app = typer.Typer()
    app.command("export-stablehlo")(serving.export_stablehlo_command)
    output = tmp_path / "deep" / "demo"
    with checks_off():
        for platforms in ("cpu", "cpu, tpu"):  # the second replaces the first
            app(["-o", str(output), "--platforms", platforms], standalone_mode=False)
    assert sorted(path.name for path in output.iterdir()) == sorted(serving.FILES)
    about = json.loads((output / "serving.json").read_text())
    assert (about["checkpoint"], about["platforms"]) == ("demo", ["cpu", "tpu"])
    assert "demo for cpu, tpu in" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'float16'; give float32 or bfloat16"):
        app(["-o", str(output), "--dtype", "float16"], standalone_mode=False)


def test_loading_refuses(exported, tmp_path: Path):
    whole = exported("offline_50hz")

    def broken(name: str, content: bytes | None) -> Path:
        folder = shutil.copytree(whole, tmp_path / f"{len(list(tmp_path.iterdir()))}")
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        return folder

    about = json.loads((whole / "serving.json").read_text())
    for name, content, message in (
        ("serving.json", None, "is not an exported codec: it holds no serving.json"),
        ("serving.json", b'{"format": "foca', "is not JSON"),
        ("serving.json", b'{"format": "other"}', "is not of this format"),
        ("serving.json", json.dumps(about | {"platforms": ["tpu"]}).encode(), "was exported for tpu; this machine has"),
        ("encode.npz", None, "lacks encode.npz"),
        ("decode.npz", (whole / "encode.npz").read_bytes(), "decode.npz is truncated or of another export"),
        ("encode.stablehlo", (whole / "encode.stablehlo").read_bytes()[:-9], "encode.stablehlo is truncated"),
    ):
        with pytest.raises(ServingError, match=message):
            load(broken(name, content))
    with pytest.raises(ServingError, match="no abacus on this machine"):
        load(whole, "abacus")


def test_bad_input_is_refused(exported):
    codec, sig, toks = load(exported("offline_50hz")), np.zeros((2, 800), np.float32), np.zeros((2, 5), np.int32)
    for call, message in (
        (lambda: codec.encode(sig[0]), r"sig has shape \(800,\); give \(batch, samples\)"),
        (lambda: codec.encode(sig[:, :0]), r"sig has shape \(2, 0\)"),
        (lambda: codec.encode(sig.astype(np.int16)), "sig holds int16 values; they are floating"),
        (lambda: codec.encode(sig + np.nan), "NaN or infinity"),
        (lambda: codec.encode(sig, [800]), "one integer for each of the 2 items"),
        (lambda: codec.encode(sig, [800, 801]), "lengths are 800 to 801 samples; sig has 1 to 800"),
        (lambda: codec.decode(toks[None]), r"toks has shape \(1, 2, 5\)"),
        (lambda: codec.decode(toks + 0.0), "toks holds float64 values; they are integer"),
        (lambda: codec.decode(toks, [5, 0]), "lengths are 0 to 5 tokens"),
        (lambda: codec.decode(toks + 8192), "toks holds 8192; this codebook is 0 to 8191"),
    ):
        with pytest.raises(ServingError, match=message):
            call()
