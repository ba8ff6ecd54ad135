"""The console for messages of the commands, on standard error."""

from rich.console import Console

console = Console(stderr=True)


def one_line(text: str) -> str:
    """Join the lines of a text and escape it, so that rich does not interpret it as markup."""
    return " ".join(text.split()).replace("[", r"\[")
