"""The command `focalcodec-jax`. Each subcommand parses its arguments, calls the library, and prints the result."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from focalcodec_jax.cli import codec, convert, corpus, export, train
from focalcodec_jax.console import console, one_line
from focalcodec_jax.errors import FocalCodecError

app = typer.Typer(
    name="focalcodec-jax",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Encode speech to tokens and decode it with FocalCodec, at 0.16 to 0.80 kbps. "
    "For a first result: focalcodec-jax reconstruct speech.wav -o out.wav",
)
app.command()(codec.encode)
app.command()(codec.decode)
app.command()(codec.reconstruct)
app.command("convert-voice")(codec.convert_voice)
app.command()(codec.info)
app.add_typer(convert.app, name="convert")
app.add_typer(train.app, name="train")
app.command()(train.prepare)
app.command()(corpus.tokenize)
app.command()(corpus.detokenize)
app.command("export-stablehlo")(export.export_stablehlo)


def main(command: typer.Typer | None = None) -> None:
    """Run the command. An error about the input is printed on one line, and the exit code is then 2."""
    with reported():
        (command or app)()


@contextmanager
def reported() -> Iterator[None]:
    """Print errors about the input on one line, and exit with code 2."""
    try:
        yield
    except FocalCodecError as error:
        option = f" (option --{error.parameter.replace('_', '-')})" if error.parameter else ""
        fail(f"{error}{option}")
    except OSError as error:
        fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))


def fail(message: str) -> None:
    """Print an error message and exit with code 2."""
    console.print(f"[bold red]error:[/] {one_line(message)}", soft_wrap=True, highlight=False)
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        os._exit(2)  # a regular exit would wait for the other processes, which wait for this one
    sys.exit(2)
