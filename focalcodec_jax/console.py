"""The console on standard error, which commands print to."""

from rich.console import Console

console = Console(stderr=True)


def one_line(text: str) -> str:
    """A text as one line, in which rich reads no markup."""
    return " ".join(text.split()).replace("[", r"\[")
