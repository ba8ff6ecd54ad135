"""Every block of README runs; names on the hub come from the stand-in."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import hub
from support.golden import GOLDEN
from support.token_data import dataset

from focalcodec_jax.files import SAMPLE_RECORDING

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
INSTALLS = ("python3 -m venv", ". .venv", "pip install", "pytest")
"""Steps that the tests themselves needed before they could run."""


@pytest.mark.parametrize(("language", "text"), BLOCKS, ids=[f"{n}-{lang}" for n, (lang, _) in enumerate(BLOCKS)])
def test_block(language: str, text: str, tmp_path: Path):
    for name in ("speech.wav", "more.flac", "voice/a.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(SAMPLE_RECORDING, tmp_path / name)
    (tmp_path / "focalcodec_jax").symlink_to(ROOT / "focalcodec_jax")
    shutil.copytree(GOLDEN / "offline_50hz", tmp_path / "speech_codec")
    if language == "python":
        dataset(tmp_path / "tokens")
    if language == "bash":
        steps = [step for line in text.splitlines() for step in line.split("&&") if line.strip()]
        text = "\n".join(step for step in steps if not step.strip().startswith(INSTALLS))
    command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
    with hub.serve({"lucadellalib/focalcodec_50hz": GOLDEN / "offline_50hz"}) as server:
        env = os.environ | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for output in re.findall(r"(?:-o|--spectrogram) (\S+)", text):
        assert (tmp_path / output).exists()


def test_readme_has_the_blocks_it_should():
    assert [language for language, _ in BLOCKS].count("python") == 3
    assert sum("focalcodec-jax reconstruct" in text for _, text in BLOCKS) == 2


def test_file_tree_names_what_is_there():
    tree = re.search(r"## Files\n\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree
    listed = set(re.findall(r"[\w/]+\.py|^\w+/", tree[1], re.MULTILINE))
    folders = ("focalcodec_jax", "focalcodec_jax/corpus", "convert", "train")
    here = {path.name for folder in folders for path in (ROOT / folder).glob("*.py")}
    quiet = {"__init__.py", "version.py", "errors.py", "files.py", "command.py"}
    assert here - quiet <= {Path(name).name for name in listed}
    assert all((ROOT / name).exists() or Path(name).name in here for name in listed)
