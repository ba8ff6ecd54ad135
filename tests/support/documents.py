"""The code blocks of README.md and docs/."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTALLS = ("python3 -m venv", ". .venv", "pip install", "pytest")
"""Beginnings of installation steps, which are done before any test runs."""
SHELL_CHARACTERS = set("|><;*$`")


@dataclass(frozen=True)
class Block:
    """A fenced block that readers may run. Blocks fenced as text are not among them."""

    document: str
    number: int
    language: str
    text: str

    @property
    def steps(self) -> list[str]:
        """The commands of a bash block, without comments and without the installation."""
        lines = self.text.replace("\\\n", " ").splitlines()
        steps = [step.strip() for line in lines for step in line.split(" #")[0].split("&&")]
        return [step for step in steps if step and not step.startswith(("#", *INSTALLS))]


def blocks() -> list[Block]:
    """Every bash and python block, in the order of the documents."""
    found = []
    for path in DOCUMENTS:
        fences = re.findall(r"^```(bash|python)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found += [Block(path.stem, number, *fence) for number, fence in enumerate(fences)]
    return found


def arguments(step: str) -> list[str] | None:
    """The arguments of a focalcodec-jax command. None if a shell is needed to run the step."""
    words = shlex.split(step)
    plain = words[0] == "focalcodec-jax" and not SHELL_CHARACTERS & set(re.sub(r"'[^']*'", "", step))
    return words[1:] if plain else None


def layout() -> list[Path]:
    """The paths that CONTRIBUTING.md names in the block below its heading "Layout"."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(r"^## Layout\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    tree = section and re.search(r"```text\n(.*?)```", section[1], re.DOTALL)
    assert tree, "CONTRIBUTING.md has no layout"
    return [ROOT / line.split()[0] for line in tree[1].splitlines() if line.strip()]
