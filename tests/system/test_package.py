"""The package's own order: what may import what, and what is installed under which name."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import focalcodec_jax

ROOT = Path(focalcodec_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py")) + [p for part in ("train", "convert", "configs") for p in (ROOT / part).glob("*.py")]

ORDER = [
    {"version", "errors", "config", "files"},
    {"layers", "lengths", "bsq", "text"},
    {"spectral", "voice", "audio", "tokenfiles"},
    {"wavlm", "focal", "decoder", "picture"},
    {"codec"},
    {"convert.mapping", "convert.official", "convert.files", "convert.wavlm"},
    {"pretrained"},
    {"inference", "flops", "corpus.windows", "serving_loader"},
    {"options", "serving", "corpus.recording", "corpus.folder"},
    {"corpus.lhotse", "corpus.readers", "corpus.engine", "corpus.formats", "corpus.journal"},
    {"corpus.sources", "corpus.describing", "corpus.progress"},
    {"corpus.blocks"},
    {"corpus.tokenizing", "corpus.detokenizing", "corpus.dryrun", "packing"},
    {"corpus.command"},
    {"convert.importing", "convert.verify"},
    {"convert.command"},
    {"train.config"},
    {"train.discriminators", "train.sharding", "train.log", "train.plot"},
    {"train.losses", "train.prepare"},
    {"train.stages", "train.checkpoint", "train.start", "train.stopping"},
    {"train.data", "train.step"},
    {"train.flops"},
    {"train.progress", "train.dryrun"},
    {"train.loop", "train.export"},
    {"train.command"},
    {"cli"},
    {"train.__main__"},
]
"""Layers of the package; a module imports its own layer and those above in this list."""


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "focalcodec_jax":
            inside = node.module.removeprefix("focalcodec_jax").removeprefix(".")
            for alias in node.names:
                candidate = f"{inside}.{alias.name}".strip(".")
                is_module = (ROOT / Path(*candidate.split("."))).with_suffix(".py").exists()
                names.add(candidate if is_module else inside)
    return names


def test_imports_go_one_way():
    level = {name: index for index, names in enumerate(ORDER) for name in names}
    found = {module(path) for path in FILES if path.name != "__init__.py"}
    assert found == level.keys(), "a new module needs its place in ORDER"
    wrong = [
        f"{module(path)} imports {name}"
        for path in FILES
        if path.name != "__init__.py"
        for name in imported(path)
        if level[name] > level[module(path)]
    ]
    assert wrong == []


def test_code_uses_the_installed_names():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"train", "convert", "configs"}, path


def test_importing_does_no_work():
    """No backend starts, and torch is not imported, until something is asked for."""
    script = """
import sys, focalcodec_jax, focalcodec_jax.cli, focalcodec_jax.convert.importing, focalcodec_jax.train
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a backend was started"
heavy = {"torch", "transformers", "librosa", "matplotlib.pyplot", "huggingface_hub"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": str(ROOT.parent)})


def test_processes_that_read_audio_start_without_jax():
    script = "import sys, focalcodec_jax.corpus.readers; assert not {'jax', 'flax', 'pyarrow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": str(ROOT.parent)})
