"""Quality of codecs: log-mel distance, PESQ, STOI, word error rate, speaker similarity, and codebook usage.

    pip install -e ".[eval]"
    python benchmarks/quality.py --audio FOLDER --whisper FOLDER -c demo -c my_codec -o quality.json

`--whisper` is a Whisper model in CTranslate2's layout, or a name that faster-whisper knows. Opus at 6 kb/s and Codec 2
are measured on the same recordings if PyAV and pycodec2 are installed. Measures without their package are left out, and
a message names the package.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from focalcodec_jax import Codec
from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.recordings import audio
from focalcodec_jax.train.losses import log_mel
from focalcodec_jax.train.metrics import code_usage
from focalcodec_jax.train.sections import MelConfig

Coder = Callable[[np.ndarray], np.ndarray]
console = Console(stderr=True)


def opus(kbps: float) -> Coder:
    """Opus from PyAV at 16 kHz, with packets of 60 ms."""
    import io

    import av

    def code(sig: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        with av.open(file, "w", format="ogg") as out:
            options = {"application": "voip", "frame_duration": "60", "vbr": "constrained"}
            stream = out.add_stream("libopus", rate=SAMPLE_RATE_HZ, options=options)
            stream.layout, stream.bit_rate = "mono", int(1000 * kbps)
            pcm = (np.clip(sig, -1, 1) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE_HZ
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                out.mux(packet)
        file.seek(0)
        with av.open(file) as source:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
            frames = [f.to_ndarray()[0] for d in source.decode(audio=0) for f in resampler.resample(d)]
        return np.concatenate(frames)

    return code


def codec2(bps: int) -> Coder:
    import pycodec2

    coder = pycodec2.Codec2(bps)
    size = coder.samples_per_frame()

    def code(sig: np.ndarray) -> np.ndarray:
        pcm = (np.clip(audio.resample(sig, SAMPLE_RATE_HZ, 8000), -1, 1) * 32767).astype(np.int16)
        pcm = np.pad(pcm, (0, -len(pcm) % size))
        decoded = np.concatenate([coder.decode(coder.encode(piece)) for piece in pcm.reshape(-1, size)])
        return audio.resample(decoded.astype(np.float32) / 32768, 8000, SAMPLE_RATE_HZ)

    return code


def installed(*modules: str) -> bool:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        console.print(f"[yellow]left out what needs {', '.join(missing)}: not installed[/]")
    return not missing


def aligned(sig: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Decoded audio cut to the original's length, without the delay of some codecs (up to 60 ms)."""
    reach = 960
    padded = np.pad(decoded, (0, max(0, len(sig) + reach - len(decoded))))
    scores = [float(np.dot(np.abs(sig[::4]), np.abs(padded[lag : lag + len(sig) : 4]))) for lag in range(0, reach, 16)]
    lag = 16 * int(np.argmax(scores))
    return padded[lag : lag + len(sig)]


class Measures:
    """All measures whose packages are installed."""

    def __init__(self, whisper: str | None):
        self.pesq, self.stoi = installed("pesq"), installed("pystoi")
        self.voice = self.whisper = None
        if installed("resemblyzer"):
            from resemblyzer import VoiceEncoder

            self.voice = VoiceEncoder("cpu", verbose=False)
        if whisper and installed("faster_whisper"):
            from faster_whisper import WhisperModel

            self.whisper = WhisperModel(whisper, device="cpu", compute_type="int8", cpu_threads=2)

    def words(self, sig: np.ndarray) -> list[str]:
        assert self.whisper is not None
        segments, _ = self.whisper.transcribe(sig, language="en", beam_size=5, condition_on_previous_text=False)
        text = " ".join(segment.text for segment in segments).lower()
        return "".join(c if c.isalnum() or c == "'" else " " for c in text).split()

    def __call__(self, sig: np.ndarray, decoded: np.ndarray, words: list[str] | None) -> dict[str, float]:
        config = MelConfig()
        a, b = (np.asarray(log_mel(x[None], config, SAMPLE_RATE_HZ)) for x in (sig, decoded))
        found = {"mel": float(np.abs(a - b).mean())}
        if self.pesq:
            from pesq import NoUtterancesError, pesq

            try:
                found["pesq"] = pesq(SAMPLE_RATE_HZ, sig, decoded, "wb")
            except NoUtterancesError:  # PESQ finds no speech in it.
                found["pesq"] = 1.0
        if self.stoi:
            from pystoi import stoi

            found["stoi"] = float(stoi(sig, decoded, SAMPLE_RATE_HZ))
        if self.voice is not None:
            from resemblyzer import preprocess_wav

            # Its silence trimming may leave nothing of a noise.
            a, b = (
                self.voice.embed_utterance(preprocess_wav(x) if len(preprocess_wav(x)) > 8000 else x)
                for x in (sig, decoded)
            )
            found["speaker"] = float(np.dot(a, b))
        if self.whisper is not None and words is not None:
            found["word_errors"] = edit_distance(words, self.words(decoded))
            found["words"] = len(words)
        return found


def edit_distance(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, last = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, last[j] + 1, last[j - 1] + (x != y)))
    return row[-1]


def summary(found: list[dict[str, float]]) -> dict[str, float]:
    """Means over recordings; the word error rate is over all words."""
    means = {name: float(np.mean([f[name] for f in found])) for name in found[0] if "word" not in name}
    if "words" in found[0]:
        means["dwer"] = 100 * sum(f["word_errors"] for f in found) / sum(f["words"] for f in found)
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--whisper", help="Whisper model for the word error rate; default: none")
    parser.add_argument("-c", "--checkpoint", action="append", default=[], help="codec to measure; may be repeated")
    parser.add_argument("--no-others", action="store_true", help="do not measure Opus and Codec 2")
    parser.add_argument("-o", "--output", type=Path, help="also write the numbers as JSON")
    arguments = parser.parse_args()

    sigs = [audio.read(path) for path in audio.recordings(arguments.audio)]
    measures = Measures(arguments.whisper)
    words = [measures.words(sig) if measures.whisper else None for sig in track(sigs, "transcribing", console=console)]
    rows: dict[str, dict[str, float]] = {}
    for name in arguments.checkpoint:
        codec = Codec.from_pretrained(name)
        toks = codec.encode(sigs, SAMPLE_RATE_HZ)
        counts = np.bincount(np.concatenate(toks), minlength=codec.config.quantizer.codebook_size)
        decoded = [audio.resample(sig, codec.sample_rate_hz, SAMPLE_RATE_HZ) for sig in codec.decode(toks)]
        decoded = [np.pad(d, (0, max(0, len(s) - len(d))))[: len(s)] for s, d in zip(sigs, decoded, strict=True)]
        row = summary(
            [measures(*item) for item in track(list(zip(sigs, decoded, words, strict=True)), name, console=console)]
        )
        # Expected usage of as many tokens drawn uniformly.
        uniform = 1 - (1 - 1 / len(counts)) ** counts.sum()
        rows[name] = {"kbps": codec.config.bitrate_bps / 1000, **row, **code_usage(counts), "usage_if_uniform": uniform}
    others: dict[str, tuple[float, Coder]] = {}
    if not arguments.no_others and installed("av"):
        others["Opus"] = (6.0, opus(6.0))
    if not arguments.no_others and installed("pycodec2"):
        others |= {f"Codec 2 {bps}": (bps / 1000, codec2(bps)) for bps in (700, 1200, 1600, 2400, 3200)}
    for name, (kbps, coder) in others.items():
        decoded = [aligned(sig, coder(sig)) for sig in sigs]
        rows[name] = {"kbps": kbps} | summary(
            [measures(*item) for item in track(list(zip(sigs, decoded, words, strict=True)), name, console=console)]
        )

    seconds = sum(map(len, sigs)) / SAMPLE_RATE_HZ
    table = Table(title=f"{len(sigs)} recordings, {seconds / 60:.1f} min")
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    for column in ("codec", *names):
        table.add_column(column)
    for codec_name, row in rows.items():
        table.add_row(codec_name, *(f"{row[name]:.3g}" if name in row else "–" for name in names))
    Console(width=160).print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps({"seconds": seconds, "codecs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
