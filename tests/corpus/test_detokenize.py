"""`focalcodec-jax detokenize` gives the audio of `Codec.decode`."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.corpora import detokenize, rows, tokenize
from support.training import voiced

from focalcodec_jax import Codec
from focalcodec_jax.recordings import audio
from focalcodec_jax.tokens.formats import FORMATS


@pytest.mark.parametrize("format", FORMATS)
def test_detokenize_gives_what_decode_gives(codec: Codec, folder: Path, tmp_path: Path, format: str):
    tokenize(folder, "-o", tmp_path / "out", "--format", format, "--shard-hours", "0.001")
    detokenize(tmp_path / "out", "-o", tmp_path / "back", "--suffix", ".wav")
    for path in folder.iterdir():
        (toks,) = codec.encode(audio.read(path), 16_000)
        (expected,) = codec.decode(toks)
        found, rate_hz = soundfile.read(tmp_path / "back" / f"{path.stem}.wav")
        assert rate_hz == codec.sample_rate_hz
        np.testing.assert_allclose(found, np.clip(expected, -1, 1), atol=1e-4)
    assert (tmp_path / "back/failures.jsonl").read_text() == ""


def test_detokenize_goes_on_and_shares_the_work(folder: Path, tmp_path: Path):
    tokenize(folder, "-o", tmp_path / "out", "--shard-hours", "0.001")
    back = tmp_path / "back"
    assert "are left to other processes" in detokenize(tmp_path / "out", "-o", back, "--shard", "1/2")
    some = {path: path.stat().st_mtime_ns for path in back.glob("*.flac")}
    assert 0 < len(some) < 12
    detokenize(tmp_path / "out", "-o", back)
    assert len(list(back.glob("*.flac"))) == 12
    assert all(path.stat().st_mtime_ns == time for path, time in some.items())
    with pytest.raises(AssertionError, match=r"started with other options \(suffix: .flac, not .ogg\)"):
        detokenize(tmp_path / "out", "-o", back, "--suffix", ".ogg")


def test_long_token_sequences_are_joined_from_windows(codec: Codec, tmp_path: Path):
    soundfile.write(tmp_path / "long.flac", voiced(31.3, 0), 16_000)
    tokenize(tmp_path / "long.flac", "-o", tmp_path / "out")
    detokenize(tmp_path / "out", "-o", tmp_path / "back", "--window", "12", "--context", "2", "--suffix", ".wav")
    (row,) = rows(tmp_path / "out")
    (path,) = (tmp_path / "back").rglob("*.wav")
    found, _ = soundfile.read(path)
    (whole,) = codec.decode(np.array(row["tokens"]))
    assert len(found) == len(whole)
    (second,) = codec.decode(np.array(row["tokens"][400:1000]))
    np.testing.assert_allclose(found[160_000:288_000], np.clip(second, -1, 1)[32_000:160_000], atol=1e-4)
