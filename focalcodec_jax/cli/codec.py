"""`focalcodec-jax encode`, `decode`, `reconstruct`, `convert-voice` and `info`."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from focalcodec_jax.cli.options import DEMO_NOTE, CheckpointOption, Device, DeviceOption
from focalcodec_jax.console import console, one_line
from focalcodec_jax.errors import AudioError, FocalCodecError
from focalcodec_jax.recordings import audio
from focalcodec_jax.tokens import files as tokenfiles

if TYPE_CHECKING:
    from focalcodec_jax.config import DType
    from focalcodec_jax.inference import Codec

AudioFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="IN...",
        help="Audio files (WAV, FLAC, MP3, OGG and others, with any sample rate and number of channels) or folders.",
    ),
]


def encode(
    inputs: AudioFiles,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Output file: .npy for one recording. For several: .npz, .json, or a folder."
        ),
    ],
    checkpoint: CheckpointOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Encode speech to tokens."""
    files = _audio_files(inputs)
    tokenfiles.check_output(output, len(files))
    names = _distinct([file.name for file in files], "recordings")
    codec = load_codec(checkpoint, device)
    started = time.monotonic()
    tokens, seconds = {}, 0.0
    for group in track(list(_batched(files)), description="encoding", console=console, transient=True):
        sigs = [audio.read(file) for file in group]
        tokens |= zip((file.name for file in group), codec.encode(sigs, audio.SAMPLE_RATE_HZ), strict=True)
        seconds += sum(map(len, sigs)) / audio.SAMPLE_RATE_HZ
    tokenfiles.write(output, {name: tokens[name] for name in names})
    total = sum(map(len, tokens.values()))
    _done(f"{total} tokens from {seconds:.1f} s of audio in {len(files)} file(s)", output, started)


def decode(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="TOKENS...", help="Token files (.npy, .npz or .json), or folders of .npy files."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Audio file to write, such as out.wav. For several sequences, a folder."),
    ],
    checkpoint: CheckpointOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Decode tokens to speech."""
    from focalcodec_jax.inference import check_tokens

    read = [(name, toks) for path in inputs for name, toks in tokenfiles.read(path).items()]
    _check_audio_output(output, len(read))
    stems = _distinct([Path(name).stem if audio.is_audio_name(name) else name for name, _ in read], "token sequences")
    codec = load_codec(checkpoint, device)
    started = time.monotonic()
    checked = [check_tokens(toks, codec.config.quantizer.codebook_size, name) for name, toks in read]
    sigs = codec.decode(checked)
    for stem, sig in zip(stems, sigs, strict=True):
        _write_audio(output, stem, sig, codec.sample_rate_hz)
    seconds = sum(map(len, sigs)) / codec.sample_rate_hz
    _done(f"{seconds:.1f} s of audio from {sum(map(len, checked))} tokens", output, started)


def reconstruct(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An audio file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Audio file to write, such as out.wav.")],
    spectrogram: Annotated[
        Path | None,
        typer.Option(
            help="Image to write, such as out.png. It shows spectrograms of input and output, and the tokens."
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Encode speech to tokens and decode it again."""
    _check_audio_output(output, 1)
    _check_picture(spectrogram)
    sig = audio.read(source)
    codec = load_codec(checkpoint, device)
    config = codec.config
    started = time.monotonic()
    with console.status("encoding and decoding"):
        (toks,) = codec.encode(sig, audio.SAMPLE_RATE_HZ)
        (decoded,) = codec.decode(toks)
    _write_audio(output, source.stem, decoded, codec.sample_rate_hz)
    if spectrogram is not None:
        from focalcodec_jax import plots

        before, after = (sig, audio.SAMPLE_RATE_HZ), (decoded, codec.sample_rate_hz)
        plots.reconstruction(spectrogram, before, after, toks, config.quantizer.code_dim)
    size = len(toks) * config.quantizer.code_dim
    seconds = len(sig) / audio.SAMPLE_RATE_HZ
    code = f"{len(toks)} tokens ({size / 8:.0f} bytes, {size / seconds / 1000:.2f} kbps)"
    _done(f"{seconds:.2f} s of speech → {code} → {len(decoded) / codec.sample_rate_hz:.2f} s of audio", output, started)
    if spectrogram is not None:
        console.print(f"image in {one_line(str(spectrogram))}", highlight=False, soft_wrap=True)


def convert_voice(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An audio file to convert.")],
    target: Annotated[
        Path, typer.Option(help="Recordings of the target speaker: a folder, or one file. Several minutes are best.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Audio file to write, such as out.wav.")],
    neighbours: Annotated[int, typer.Option("-k", min=1, help="Number of nearest neighbours to average.")] = 4,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Convert a recording to the voice of another speaker."""
    _check_audio_output(output, 1)
    sig = audio.read(source)
    files = audio.recordings(target) if target.is_dir() else [target]
    voices = [audio.read(file) for file in track(files, "reading the target", console=console, transient=True)]
    codec = load_codec(checkpoint, device)
    started = time.monotonic()
    with console.status("converting"):
        (converted,) = codec.convert_voice(sig, voices, audio.SAMPLE_RATE_HZ, k=neighbours)
    _write_audio(output, source.stem, converted, codec.sample_rate_hz)
    seconds = sum(map(len, voices)) / audio.SAMPLE_RATE_HZ
    _done(f"{len(converted) / codec.sample_rate_hz:.2f} s in the voice of {seconds:.1f} s of speech", output, started)


def info(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a published model or hub repository, or a folder.")
    ],
) -> None:
    """Show the parts, parameters, rates and latency of a codec. The names of published models need no network."""
    import math

    from focalcodec_jax.config import PARTS
    from focalcodec_jax.pretrained import parameter_shapes, structure

    config = structure(name)
    shapes, names = parameter_shapes(config), config.to_dict()
    sizes = {part: sum(math.prod(s) for path, s in shapes.items() if path.startswith(f"{part}/")) for part in PARTS}

    parts = Table(title=name)
    for column, justify in (("part", "left"), ("kind", "left"), ("parameters (M)", "right")):
        parts.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    for part, size in sizes.items():
        parts.add_row(part, names[f"{part}_name"], f"{size / 1e6:.1f}")
    parts.add_row("all", "", f"{sum(sizes.values()) / 1e6:.1f}", style="bold")
    rates = Table(show_header=False)
    latency = config.latency_seconds
    for what, value in (
        ("sample rate in → out", f"{audio.SAMPLE_RATE_HZ} → {config.sample_rate_out_hz} Hz"),
        ("feature frames", f"{config.frame_rate_hz:g} per second"),
        ("tokens", f"{config.token_rate_hz:g} per second"),
        ("codebook", f"2^{config.quantizer.code_dim} = {config.quantizer.codebook_size} codes"),
        ("bit rate", f"{config.bitrate_bps / 1000:g} kbps"),
        ("latency", "the whole utterance (offline)" if latency is None else f"{1000 * latency:g} ms (causal)"),
    ):
        rates.add_row(what, value)
    out = Console()
    out.print(parts, rates)


def load_codec(checkpoint: str | None, device: Device, dtype: "DType | None" = None) -> "Codec":
    """Load the codec that the options select. A note is printed if it is the demo codec by default."""
    from focalcodec_jax.inference import Codec
    from focalcodec_jax.pretrained import DEMO

    if checkpoint is None:
        console.print(f"[yellow]{DEMO_NOTE}[/]", soft_wrap=True)
    with console.status("loading the codec"):
        return Codec.from_pretrained(checkpoint or DEMO, dtype=dtype, device=None if device is Device.auto else device)


def _audio_files(inputs: list[Path]) -> list[Path]:
    files = [file for path in inputs for file in (audio.recordings(path) if path.is_dir() else [path])]
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise AudioError(f"no such file: {', '.join(missing)}")
    return files


def _distinct(names: list[str], what: str) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise FocalCodecError(
            f"{what} are stored by file name, and some names occur more than once: {', '.join(twice)}"
        )
    return names


def _batched(files: list[Path], size: int = 64) -> Iterator[list[Path]]:
    """Split files into groups that fit in memory and are large enough to fill batches."""
    for start in range(0, len(files), size):
        yield files[start : start + size]


def _check_audio_output(output: Path, count: int) -> None:
    """Check that the output can be written, before any work is done."""
    if output.suffix and not output.is_dir():
        audio.check_name(output)
        if count > 1:
            raise AudioError(f"{output} is a single file, but there are {count} results; give a folder")
        if not output.parent.is_dir():
            raise AudioError(f"the folder of {output} does not exist; create it first")


def _check_picture(path: Path | None) -> None:
    if path is None:
        return
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise FocalCodecError(f"{path} does not end in the extension of an image format; .png always works")
    if not path.parent.is_dir():
        raise FocalCodecError(f"the folder of {path} does not exist; create it first")


def _write_audio(output: Path, stem: str, sig, rate_hz: int) -> None:
    if not output.suffix or output.is_dir():
        output.mkdir(parents=True, exist_ok=True)
        output = output / f"{stem}.wav"
    audio.write(output, sig, rate_hz)


def _done(what: str, output: Path, started: float) -> None:
    elapsed = time.monotonic() - started
    console.print(f"{what}, in {one_line(str(output))} after {elapsed:.1f} s", highlight=False, soft_wrap=True)
