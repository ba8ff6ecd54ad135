"""The console that commands print to, on standard error."""

from rich.console import Console

console = Console(stderr=True)


def one_line(text: str) -> str:
    """Join a text to one line and escape it, so that rich does not interpret it as markup."""
    return " ".join(text.split()).replace("[", r"\[")
