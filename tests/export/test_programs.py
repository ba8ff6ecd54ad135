"""Exported programs compute the same as the model, and invalid exports and inputs are refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import export
from support.golden import GOLDEN, load_golden
from typer.testing import CliRunner

from focalcodec_jax import ConfigError, FocalCodecError, cli
from focalcodec_jax.config import PRESETS
from focalcodec_jax.export import ExportReport, programs, stablehlo, write_programs
from focalcodec_jax.export.loader import ServingError, load, padded_length
from focalcodec_jax.nn import lengths as count, wavlm

SAMPLES = (1, 1001, 12345)
"""Lengths of a batch. With these, the model compiles to a program that test_padding.py compiles as well."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """exported(name): folder of the export of a golden model."""

    @cache
    def write(name: str) -> Path:
        golden, folder = load_golden(name), tmp_path_factory.mktemp(name)
        with checks_off():
            write_programs(golden.model, golden.variables, folder, checkpoint=name)
        return folder

    return write


class checks_off:  # noqa: N801 - used like a function
    """Disables shape checks during exports, because symbolic lengths are not of the annotated type int."""

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

    decoded, samples = codec.decode(np.where(real, toks, -1), tokens)  # padding may hold invalid tokens
    np.testing.assert_array_equal(samples, count.tokens_to_samples(config, tokens))
    np.testing.assert_allclose(decoded, golden.apply("toks_to_sig", toks, tokens), atol=1e-5)


SCRIPT = """
import sys
sys.modules |= dict.fromkeys(("focalcodec_jax", "flax", "jaxtyping", "safetensors", "typer"))  # None blocks the import
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
    """The copied loader runs two batches of different shapes in another process, with a causal model for 24 kHz."""
    golden = load_golden("causal_ragged")
    folder = shutil.copytree(exported("causal_ragged"), tmp_path / "elsewhere")
    batches = {"a": recordings((300, 2000)), "b": recordings((6500, 5000, 700))}
    arrays: dict[str, Any] = {f"{name}_lengths": samples for name, (_, samples) in batches.items()}
    arrays |= {name: sig for name, (sig, _) in batches.items()}
    np.savez(folder / "inputs.npz", **arrays)
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
        assert str(Path(programs.__file__).parent).encode() not in file.read_bytes(), "a path of this machine"
        loaded = export.deserialize(bytearray(file.read_bytes()))
        assert loaded.platforms == ("cpu", "cuda", "tpu")
        products = re.findall(r"stablehlo\.(?:dot_general|convolution|dot)[^\n]*", loaded.mlir_module())
        assert len(products) > 10
        assert all("HIGHEST" in product for product in products), products


def test_the_description_of_an_export(exported):
    about = json.loads((exported("offline_12_5hz") / "serving.json").read_text())
    assert about["checkpoint"] == "offline_12_5hz"
    assert (about["sample_rate_hz"], about["sample_rate_out_hz"], about["token_rate_hz"]) == (16000, 16000, 12.5)
    assert (about["codebook_size"], about["platforms"]) == (8192, ["cpu", "cuda", "tpu"])
    assert about["encode"]["step"] * 7 + about["encode"]["extra"] == 16000 * 7 // 12.5 + 80
    assert set(about["sha256"]) == {"encode.stablehlo", "encode.npz", "decode.stablehlo", "decode.npz"}


@pytest.mark.parametrize("frames", [1, 50, 900])
def test_relative_bias_of_symbolic_sizes(frames: int):
    """The form that supports a symbolic number of frames equals a direct lookup, for near and far distances."""
    config = PRESETS["focalcodec_50hz"].encoder
    module = wavlm.RelativeBias(config)
    variables: Any = module.init(jax.random.key(0), 1)
    relative = np.arange(frames)[None] - np.arange(frames)[:, None]
    bucket = wavlm.relative_position_bucket(relative, config.num_buckets, config.max_distance)
    plain = jnp.moveaxis(variables["params"]["embedding"][bucket], -1, 0)
    np.testing.assert_array_equal(module.apply(variables, frames), plain)


@pytest.mark.parametrize("step", [1, 4, 320, 1280])
def test_the_loader_pads_as_the_package_does(step: int):
    """The loader has its own copy of the rule, because it imports only jax and NumPy."""
    for length in range(1, 100_000, 61):
        assert padded_length(length, step, 0) == count.bucket_length(length, step)
        assert padded_length(length + 80, step, 80) == count.bucket_length(length, step) + 80


# --- errors


def test_exporting_refuses(tmp_path: Path, exported):
    golden = load_golden("offline_50hz")

    def write(folder: Path, platforms: tuple[str, ...] = ("cpu",)) -> None:
        write_programs(golden.model, golden.variables, folder, platforms)

    with pytest.raises(ConfigError, match="no platform is called 'gpu'; give one or more of cpu,cuda,tpu") as caught:
        write(tmp_path / "new", ("cpu", "gpu"))
    assert caught.value.parameter == "platforms"
    with pytest.raises(ConfigError, match="no platform is given"):
        write(tmp_path / "new", ())
    assert not (tmp_path / "new").exists()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FocalCodecError, match=r"contains other files \(thesis.tex\)"):
        write(tmp_path)
    with pytest.raises(FocalCodecError, match="is a file"):
        write(tmp_path / "thesis.tex")


def test_export_of_a_checkpoint_by_function_and_command(tmp_path: Path, monkeypatch, capsys):
    output = tmp_path / "deep" / "demo"
    with checks_off():
        report = stablehlo(GOLDEN / "offline_12_5hz", output, ["cpu"])
        assert report == ExportReport(output, str(GOLDEN / "offline_12_5hz"), ("cpu",))
        monkeypatch.setattr(cli.console, "_file", sys.stderr)  # monkeypatch does not restore its property
        arguments = ["export-stablehlo", "-o", str(output), "--platforms", "cpu, tpu"]  # replaces the first export
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert sorted(path.name for path in output.iterdir()) == sorted(programs.FILES)
    about = json.loads((output / "serving.json").read_text())
    assert (about["checkpoint"], about["platforms"]) == ("demo", ["cpu", "tpu"])
    assert "demo for cpu, tpu in" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'float16'; give float32 or bfloat16"):
        CliRunner().invoke(
            cli.app, ["export-stablehlo", "-o", str(output), "--dtype", "float16"], catch_exceptions=False
        )


def test_loading_refuses(exported, tmp_path: Path):
    whole = exported("offline_50hz")

    def broken(name: str, content: bytes | None) -> Path:
        folder = shutil.copytree(whole, tmp_path / f"{len(list(tmp_path.iterdir()))}")
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        return folder

    about = json.loads((whole / "serving.json").read_text())
    for name, content, message in (
        ("serving.json", None, "is not an exported codec, because it contains no serving.json"),
        ("serving.json", b'{"format": "foca', "is not JSON"),
        ("serving.json", b'{"format": "other"}', "does not have the format"),
        ("serving.json", json.dumps(about | {"platforms": ["tpu"]}).encode(), "was exported for tpu; this machine has"),
        ("encode.npz", None, "lacks encode.npz"),
        ("decode.npz", (whole / "encode.npz").read_bytes(), "decode.npz is truncated or from another export"),
        ("encode.stablehlo", (whole / "encode.stablehlo").read_bytes()[:-9], "encode.stablehlo is truncated"),
    ):
        with pytest.raises(ServingError, match=message):
            load(broken(name, content))
    with pytest.raises(ServingError, match="this machine has no abacus"):
        load(whole, "abacus")


def test_bad_input_is_refused(exported):
    codec, sig, toks = load(exported("offline_50hz")), np.zeros((2, 800), np.float32), np.zeros((2, 5), np.int32)
    for call, message in (
        (lambda: codec.encode(sig[0]), r"sig has shape \(800,\); give \(batch, samples\)"),
        (lambda: codec.encode(sig[:, :0]), r"sig has shape \(2, 0\)"),
        (lambda: codec.encode(sig.astype(np.int16)), "sig contains int16 values; give floating values"),
        (lambda: codec.encode(sig + np.nan), "NaN or infinity"),
        (lambda: codec.encode(sig, [800]), "one integer for each of the 2 items"),
        (lambda: codec.encode(sig, [800, 801]), "lengths are 800 to 801 samples; they must be between 1 and 800"),
        (lambda: codec.decode(toks[None]), r"toks has shape \(1, 2, 5\)"),
        (lambda: codec.decode(toks + 0.0), "toks contains float64 values; give integer values"),
        (lambda: codec.decode(toks, [5, 0]), "lengths are 0 to 5 tokens"),
        (lambda: codec.decode(toks + 8192), "toks contains 8192; tokens of this codec are 0 to 8191"),
    ):
        with pytest.raises(ServingError, match=message):
            call()
