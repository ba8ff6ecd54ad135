"""The command as a user runs it: its outputs, and one-line errors."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.golden import GOLDEN
from typer.testing import CliRunner

from focalcodec_jax import Codec, cli
from focalcodec_jax.files import SAMPLE_RECORDING
from focalcodec_jax.recordings import audio

CHECKPOINT = str(GOLDEN / "offline_12_5hz")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.from_pretrained(CHECKPOINT)


@pytest.fixture
def speech(work: Path) -> dict[str, np.ndarray]:
    """Write recordings of several formats, rates and channels. Returns the signals that the codec should receive."""
    sig = audio.read(SAMPLE_RECORDING)[16000:30000]
    stereo = np.stack([sig, np.zeros_like(sig)], axis=1)
    soundfile.write("mono.wav", sig, 16000, subtype="FLOAT")
    soundfile.write("stereo.flac", stereo, 16000, subtype="PCM_24")
    soundfile.write("fast.ogg", audio.resample(sig, 16000, 48000), 48000)
    return {"mono.wav": sig, "stereo.flac": sig / 2, "fast.ogg": sig}


def run(monkeypatch, capsys, *arguments: object, checkpoint: str | None = CHECKPOINT) -> tuple[int, str]:
    """Run the command in this process. Returns the exit code and the printed text."""
    extra = ["--checkpoint", checkpoint] if checkpoint else []
    monkeypatch.setattr(sys, "argv", ["focalcodec-jax", *map(str, arguments), *extra])
    monkeypatch.setattr(cli.console, "_file", sys.stderr)  # monkeypatch does not restore its property
    code: object = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    assert isinstance(code, int)
    return code, captured.out + captured.err


def test_encode_one_and_decode(monkeypatch, capsys, codec: Codec, speech):
    code, printed = run(monkeypatch, capsys, "encode", "mono.wav", "-o", "mono.npy")
    assert code == 0, printed
    toks = np.load("mono.npy")
    assert np.issubdtype(toks.dtype, np.integer)
    np.testing.assert_array_equal(toks, codec.encode(speech["mono.wav"], 16000)[0])
    assert f"{len(toks)} tokens from 0.9 s of audio in 1 file(s)" in printed

    Path("mono.wav").unlink()  # decoding needs only the tokens
    code, printed = run(monkeypatch, capsys, "decode", "mono.npy", "-o", "back.wav")
    assert code == 0, printed
    back, rate_hz = soundfile.read("back.wav")
    assert rate_hz == 16000
    np.testing.assert_allclose(back, np.clip(codec.decode(toks)[0], -1, 1), atol=1e-4)


@pytest.mark.parametrize("output", ["tokens", "tokens.npz", "tokens.json"])
def test_encode_several_and_decode_them(monkeypatch, capsys, codec: Codec, speech, output: str):
    code, printed = run(monkeypatch, capsys, "encode", *speech, "-o", output)
    assert code == 0, printed
    if output == "tokens":
        tokens = {name: np.load(f"tokens/{name}.npy") for name in speech}
    elif output == "tokens.npz":
        tokens = dict(np.load(output))
    else:
        tokens = {name: np.array(toks) for name, toks in json.loads(Path(output).read_text()).items()}
    assert tokens.keys() == speech.keys()
    np.testing.assert_array_equal(tokens["mono.wav"], codec.encode(speech["mono.wav"], 16000)[0])
    assert np.mean(tokens["stereo.flac"] == codec.encode(speech["stereo.flac"], 16000)[0]) > 0.7  # 24-bit rounding
    assert len(tokens["fast.ogg"]) == len(tokens["mono.wav"])

    code, printed = run(monkeypatch, capsys, "decode", output, "-o", "sound")
    assert code == 0, printed
    assert sorted(path.name for path in Path("sound").iterdir()) == ["fast.wav", "mono.wav", "stereo.wav"]


def test_encode_a_folder(monkeypatch, capsys, speech, work: Path):
    Path("notes.txt").write_text("not audio")
    code, printed = run(monkeypatch, capsys, "encode", ".", "-o", "tokens.json")
    assert code == 0, printed
    assert json.loads(Path("tokens.json").read_text()).keys() == speech.keys()


def test_reconstruct_with_picture(monkeypatch, capsys, codec: Codec, speech):
    code, printed = run(monkeypatch, capsys, "reconstruct", "mono.wav", "-o", "out.wav", "--spectrogram", "out.png")
    assert code == 0, printed
    assert re.search(r"0\.88 s of speech → 11 tokens \(18 bytes, 0\.16 kbps\) → 0\.88 s of audio, in out\.wav", printed)
    back, _ = soundfile.read("out.wav")
    expected = codec.decode(codec.encode(speech["mono.wav"], 16000))[0]
    np.testing.assert_allclose(back, np.clip(expected, -1, 1), atol=1e-4)

    import matplotlib.image

    picture = matplotlib.image.imread("out.png")
    assert picture.shape == (840, 1200, 4)
    # Each of the three rows of axes shows more than a flat colour.
    assert all(part[..., :3].std() > 0.05 for part in np.array_split(picture[:, 100:1000], 3))


def test_a_notice_without_a_checkpoint(monkeypatch, capsys, speech):
    code, printed = run(monkeypatch, capsys, "reconstruct", "mono.wav", "-o", "out.wav", checkpoint=None)
    assert code == 0, printed
    assert "demo codec" in printed
    assert "give --checkpoint lucadellalib/focalcodec_50hz" in printed


def test_convert_voice(monkeypatch, capsys, codec: Codec, speech):
    Path("voice").mkdir()
    Path("stereo.flac").rename("voice/a.flac")
    Path("fast.ogg").rename("voice/b.ogg")
    code, printed = run(monkeypatch, capsys, "convert-voice", "mono.wav", "--target", "voice", "-o", "said.wav")
    assert code == 0, printed
    target = [audio.read(path) for path in ("voice/a.flac", "voice/b.ogg")]
    (expected,) = codec.convert_voice(speech["mono.wav"], target, 16000)
    np.testing.assert_allclose(soundfile.read("said.wav")[0], np.clip(expected, -1, 1), atol=1e-4)


def test_info_of_a_published_model_needs_no_network():
    result = CliRunner().invoke(cli.app, ["info", "lucadellalib/focalcodec_50hz_4k_causal"])
    assert result.exit_code == 0
    for part in ("WaveNeXt", "88.7", "42.6", "76.2", "41.5", "249.0", "16000 → 24000 Hz", "0.6 kbps", "80 ms (causal)"):
        assert part in result.output
    assert "the whole utterance" in CliRunner().invoke(cli.app, ["info", CHECKPOINT]).output


# --- errors


def bad(name: str, content: bytes = b"") -> str:
    Path(name).write_bytes(content)
    return name


def wav(name: str, samples: np.ndarray) -> str:
    soundfile.write(name, samples, 16000, subtype="FLOAT")
    return name


ERRORS = {
    "missing file": (lambda: ["encode", "nothing.wav", "-o", "x.npy"], "no such file: nothing.wav"),
    "not audio": (lambda: ["encode", bad("a.wav", b"hello"), "-o", "x.npy"], "a.wav is not audio"),
    "empty file": (lambda: ["encode", bad("a.flac"), "-o", "x.npy"], "a.flac is not audio"),
    "no samples": (lambda: ["encode", wav("a.wav", np.zeros(0)), "-o", "x.npy"], "a.wav is empty"),
    "NaN": (lambda: ["encode", wav("a.wav", np.array([0, np.nan])), "-o", "x.npy"], "1 samples that are NaN"),
    "folder without audio": (lambda: ["encode", ".", "-o", "x.npz"], "contains no audio files"),
    "several to .npy": (
        lambda: ["encode", wav("a.wav", np.ones(9)), wav("b.wav", np.ones(9)), "-o", "x.npy"],
        "x.npy is a file for one token sequence, but there are 2; give a folder",
    ),
    "same name twice": (
        lambda: ["encode", wav("a.wav", np.ones(9)), "a.wav", "-o", "x.json"],
        "occur more than once: a.wav",
    ),
    "unknown token format": (lambda: ["encode", wav("a.wav", np.ones(9)), "-o", "x.txt"], "does not end in .npy"),
    "missing tokens": (lambda: ["decode", "x.npy", "-o", "x.wav"], "x.npy does not exist"),
    "truncated tokens": (lambda: ["decode", bad("x.npz", b"PK\3\4"), "-o", "x.wav"], "not a readable token file"),
    "json list": (lambda: ["decode", bad("x.json", b"[1]"), "-o", "x.wav"], 'give an object such as {"a.wav"'),
    "token out of range": (
        lambda: ["decode", bad("x.json", b'{"a.wav": [8192]}'), "-o", "x.wav"],
        "a.wav has token 8192 at position 0; tokens of this codec are 0 to 8191",
    ),
    "tokens that are words": (lambda: ["decode", bad("x.json", b'{"a": ["b"]}'), "-o", "x.wav"], "tokens are integers"),
    "unknown audio format": (lambda: ["reconstruct", str(SAMPLE_RECORDING), "-o", "x.doc"], "such as .wav or .flac"),
    "missing output folder": (
        lambda: ["reconstruct", str(SAMPLE_RECORDING), "-o", "no/x.wav"],
        "the folder of no/x.wav",
    ),
    "unknown picture format": (
        lambda: ["reconstruct", str(SAMPLE_RECORDING), "-o", "x.wav", "--spectrogram", "x.doc"],
        ".png always works",
    ),
    "target too short": (
        lambda: [
            "convert-voice",
            str(SAMPLE_RECORDING),
            "--target",
            wav("t.wav", np.ones(9) / 9),
            "-k",
            "9",
            "-o",
            "x.wav",
        ],
        "fewer than k = 9",
    ),
    "no such device": (
        lambda: ["reconstruct", str(SAMPLE_RECORDING), "-o", "x.wav", "--device", "tpu"],
        "this machine has no tpu, or JAX is installed without support for it; available: cpu (option --device)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line_and_leave_nothing(monkeypatch, capsys, work: Path, name: str):
    make, message = ERRORS[name]
    arguments = make()
    before = sorted(work.rglob("*"))
    code, printed = run(monkeypatch, capsys, *arguments)
    assert code == 2, printed
    lines = printed.strip().splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    assert message in lines[-1]
    assert sorted(work.rglob("*")) == before, "no file may be left"


@pytest.mark.parametrize("name", ["nothing-here", "no/folder/deep"])
def test_unknown_checkpoint(monkeypatch, capsys, name: str):
    code, printed = run(monkeypatch, capsys, "reconstruct", SAMPLE_RECORDING, "-o", "x.wav", checkpoint=name)
    assert code == 2
    assert f"error: no checkpoint '{name}': neither a local folder nor a hub name" in printed


def test_no_write_permission(monkeypatch, capsys, work: Path):
    """Root ignores the mode of a folder, so for root the test replaces `open`."""
    Path("locked").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    if os.geteuid() == 0:
        import builtins

        real = builtins.open

        def refuse(path, mode="r", *rest, **named):
            if "w" in mode and "locked" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, mode, *rest, **named)

        monkeypatch.setattr(builtins, "open", refuse)
    code, printed = run(monkeypatch, capsys, "reconstruct", SAMPLE_RECORDING, "-o", "locked/x.wav")
    assert code == 2
    assert re.search(r"error: Permission denied: locked/\S*x", printed)
    assert not list(Path("locked").iterdir())


def test_interrupted_write_leaves_the_old_file(work: Path):
    from focalcodec_jax.files import written_whole

    Path("x.npy").write_text("old")

    def interrupted():
        with written_whole("x.npy") as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Path("x.npy").read_text() == "old"
    assert [path.name for path in work.iterdir()] == ["x.npy"]


def test_help_names_every_command_and_starts_without_a_backend():
    script = "import sys; sys.argv = ['focalcodec-jax', '--help']; from focalcodec_jax.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for command in ("encode", "decode", "reconstruct", "convert-voice", "info", "convert"):
        assert command in done.stdout
