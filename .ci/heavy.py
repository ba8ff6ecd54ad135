"""Prints which heavy checks a change needs, one a line: `large`, `tpu`, `newest`.

`large` and `tpu` are markers of tests. `newest` is the run with a newer Python and the newest JAX.

A check runs when a file that it depends on has changed since the base, or with CI_FULL=1. The base is the commit
CI_BASE; or else where the current branch left origin's default branch; or else, when the current commit is already on
that branch, the commit RECENT commits ago. Without a base, as in a shallow clone, every check runs.
"""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

RECENT = 30
"""Commits that are compared when no base is known: more than one change usually has."""

MODEL = ("focalcodec_jax/nn/", "focalcodec_jax/config.py", "focalcodec_jax/pretrained.py")
TRAINING = ("train/", "configs/", "focalcodec_jax/flops.py")
DEPENDS_ON = {
    "large": (
        *MODEL,
        *TRAINING,
        "convert/",
        "tests/convert/test_convert.py",
        "tests/support/fullsize.py",
        "tests/system/test_road.py",
    ),
    "tpu": (*MODEL, *TRAINING, "tests/train/test_tpu.py"),
    "newest": (),
}
"""Files and folders that each heavy check depends on."""
ALWAYS = ("pyproject.toml", ".ci/", "tests/conftest.py")
"""A change of these needs every check."""


def needed(changed: Iterable[str] | None) -> list[str]:
    """The checks that a list of changed files needs; all of them for None."""
    if changed is None:
        return list(DEPENDS_ON)
    changed = list(changed)
    return [check for check, files in DEPENDS_ON.items() if any(path.startswith((*ALWAYS, *files)) for path in changed)]


def git(repository: Path, *arguments: str) -> str | None:
    """What git prints, or None if the command fails."""
    done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def changed_files(repository: Path, base: str | None) -> list[str] | None:
    """Files that differ between the base and the working tree, or None where no base is found."""
    if not base:
        base = git(repository, "merge-base", "HEAD", "origin/HEAD")
        if not base or base == git(repository, "rev-parse", "HEAD"):
            base = f"HEAD~{RECENT}"
    listed = git(repository, "diff", "--name-only", "--no-renames", base)
    return None if listed is None else listed.splitlines()


if __name__ == "__main__":
    full = os.environ.get("CI_FULL") == "1"
    print(*needed(None if full else changed_files(Path(__file__).parents[1], os.environ.get("CI_BASE"))), sep="\n")
