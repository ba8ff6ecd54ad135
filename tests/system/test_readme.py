"""Every block of README.md and docs/ runs. Names on the hub come from a stand-in.

Commands run in this process, which saves starting JAX for each. One block runs in a shell, as a reader runs it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
from support import hub
from support.documents import DOCUMENTS, ROOT, Block, arguments, blocks, layout
from support.golden import GOLDEN
from support.token_data import dataset
from support.typecheck import checks_off
from typer.testing import CliRunner

from focalcodec_jax.cli import app
from focalcodec_jax.files import SAMPLE_RECORDING

BLOCKS = blocks()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The working folder of a document, whose blocks run in order, with the files that they name."""

    @cache
    def make(document: str) -> Path:
        path = tmp_path_factory.mktemp(document)
        for name in ("speech.wav", "more.flac", "voice/a.flac"):
            (path / name).parent.mkdir(exist_ok=True)
            shutil.copy(SAMPLE_RECORDING, path / name)
        assets = Path("focalcodec_jax/assets")
        shutil.copytree(ROOT / assets, path / assets)
        shutil.copytree(GOLDEN / "offline_50hz", path / "speech_codec")
        return path

    return make


@pytest.fixture
def folder(block: Block, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a block, and a stand-in for the hub."""
    from huggingface_hub import constants

    path = folders(block.document)
    monkeypatch.chdir(path)
    with hub.serve({"lucadellalib/focalcodec_50hz": GOLDEN / "offline_50hz"}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(path / "home"))
        yield path


def in_shell(text: str) -> None:
    """Run a text in bash, with this Python's commands first on the path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "-euc", text]
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def in_process(step: str) -> None:
    """Run one step of a bash block."""
    given = arguments(step)
    if given is None:
        return in_shell(step)
    result = CliRunner().invoke(app, given, prog_name="focalcodec-jax", catch_exceptions=False)
    assert result.exit_code == 0, f"{step}\n{result.output}"


@pytest.mark.parametrize("block", BLOCKS, ids=[f"{block.document}-{block.number}-{block.language}" for block in BLOCKS])
def test_block(block: Block, folder: Path):
    with checks_off() if "stablehlo" in block.text else nullcontext():
        if block.language == "python":
            if "tokens/" in block.text and not (folder / "tokens").exists():
                dataset(folder / "tokens")
            exec(compile(block.text, f"{block.document}.md", "exec"), {"__name__": "__main__"})
        elif block == BLOCKS[0]:
            in_shell("\n".join(block.steps))
        else:
            for step in block.steps:
                in_process(step)
    if block.language == "bash":
        outputs = re.findall(r"(?:-o|--spectrogram|--run-dir) (\S+)", "\n".join(block.steps))
        assert all((folder / output).exists() for output in outputs)


def test_the_first_block_shows_the_command():
    assert BLOCKS[0].document == "README"
    assert [step.split()[0] for step in BLOCKS[0].steps] == ["focalcodec-jax"]


def test_readme_shows_commands_and_their_python_form():
    readme = [block for block in BLOCKS if block.document == "README"]
    assert sum("focalcodec-jax reconstruct" in block.text for block in readme) == 2
    assert sum(block.language == "python" for block in readme) >= 3


def test_links_between_documents_lead_somewhere():
    for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            assert "://" in target or (path.parent / target).exists(), f"{path.name} links to {target}"


def test_layout_names_what_exists():
    missing = [str(path.relative_to(ROOT)) for path in layout() if not path.exists()]
    assert missing == []
