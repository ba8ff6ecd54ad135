"""The package's own order: what may import what, how long things may be, and what is installed under which name."""

import ast
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.imports import PACKAGE, ROOT, closure, cycles, modules, own, third_party

import focalcodec_jax

BASE = {"version", "errors", "lazy", "config", "files"}
MODEL = BASE | {"nn", "pretrained", "convert"}
ALLOWED = {
    "version": set(),
    "errors": set(),
    "lazy": set(),
    "config": {"errors"},
    "files": {"errors"},
    "nn": {"config", "errors"},
    "recordings": BASE,
    "tokens": BASE | {"recordings"},
    "convert": MODEL,
    "pretrained": MODEL,
    "flops": BASE | {"nn"},
    "plots": BASE | {"nn"},
    "inference": MODEL | {"recordings", "tokens"},
    "export": MODEL | {"flops"},
    "corpus": MODEL | {"recordings", "tokens", "inference", "flops"},
    "train": MODEL | {"recordings", "flops", "plots"},
    "configs": set(),
    "console": set(),
}
"""What each folder or module may import from the others. `cli` may import all of them."""
LOW_IN_CONVERT = {"mapping", "official", "wavlm", "files"}
"""Modules of `convert` that `pretrained` stands on; the others stand on `pretrained`."""
ENTRY_POINT = f"{PACKAGE}.train.__main__"

MOST_LINES_IN_A_FUNCTION, MOST_LINES_IN_A_FILE, MOST_ARGUMENTS = 60, 350, 6


def part(module: str) -> str:
    """The folder or top-level module that a module belongs to; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def test_every_part_has_a_rule():
    parts = {part(module) for module in modules()} - {"", "cli"}
    assert parts - ALLOWED.keys() == set(), "a new folder or module needs a rule in ALLOWED"


@pytest.mark.parametrize("name", ALLOWED)
def test_a_part_imports_only_what_its_rule_allows(name: str):
    wrong = {
        f"{module} imports {other}"
        for module in modules()
        if part(module) == name and module != ENTRY_POINT
        for other in own(module)
        if part(other) not in {name, *ALLOWED[name]} and other != PACKAGE
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_pretrained_stands_on_the_low_modules_of_convert():
    low = {f"{PACKAGE}.convert.{name}" for name in LOW_IN_CONVERT}
    assert {name for name in own(f"{PACKAGE}.pretrained") if part(name) == "convert"} <= {*low, f"{PACKAGE}.convert"}
    for module in low:
        assert {part(name) for name in own(module)} <= {"convert", *BASE}, module
        assert {name for name in own(module) if part(name) == "convert"} <= low, module
        assert not third_party(module) & {"jax", "flax"}, module


def test_no_module_imports_itself_through_others():
    assert cycles() == []


def test_only_commands_use_typer_and_rich():
    wrong = {
        f"{module} imports {name}"
        for module in modules()
        if part(module) not in ("cli", "console")
        for name in third_party(module) & {"typer", "rich"}
    }
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize("folder", ["recordings", "tokens"])
def test_importing_starts_no_jax(folder: str):
    """Neither a module of these folders nor anything that it imports uses JAX, Flax, typer or rich."""
    wrong = {
        f"{module} imports {reached}, which imports {name}"
        for module in modules()
        if part(module) == folder
        for reached in closure(module)
        for name in third_party(reached, at_start=True) & {"jax", "jaxlib", "flax", "typer", "rich"}
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_code_uses_the_installed_names():
    for module in modules():
        assert not third_party(module) & {"train", "convert", "configs", "tests"}, module


def functions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function below a node, with its full name."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        inner = f"{name}.{child.name}" if named else name
        if named and not isinstance(child, ast.ClassDef):
            yield inner, child
        yield from functions(child, inner)


def argument_count(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_files_and_functions_are_short():
    """The functions of `cli` may have more arguments, which are the options of a command."""
    wrong = []
    for module, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MOST_LINES_IN_A_FILE:
            wrong.append(f"{module}: {text.count(chr(10))} lines, at most {MOST_LINES_IN_A_FILE}")
        for name, function in functions(ast.parse(text), module):
            lines, arguments = (function.end_lineno or 0) - function.lineno + 1, argument_count(function)
            if lines > MOST_LINES_IN_A_FUNCTION:
                wrong.append(f"{name}: {lines} lines, at most {MOST_LINES_IN_A_FUNCTION}")
            if arguments > MOST_ARGUMENTS and part(module) != "cli":
                wrong.append(f"{name}: {arguments} arguments, at most {MOST_ARGUMENTS}")
    assert not wrong, "\n".join(["split these, or group their arguments:", *sorted(wrong)])


def test_every_folder_is_a_package_in_pyproject():
    """setuptools' `find` does not follow package-dir, so pyproject.toml lists the packages."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        module if path.name == "__init__.py" else module.rpartition(".")[0] for module, path in modules().items()
    }
    assert set(listed) == folders
    for module, path in modules().items():
        assert (path.parent / "__init__.py").is_file(), f"{module} is outside any package"


def test_the_repository_holds_no_links():
    """A ZIP download and a clone without symbolic links hold the same files as any other."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert [line for line in listed.splitlines() if line.startswith("120000")] == []


@pytest.mark.parametrize("name", ["train", "convert", "configs"])
def test_no_folder_is_a_top_level_module(name: str, tmp_path: Path):
    script = f"import importlib.util as u; assert u.find_spec('{name}') is None and u.find_spec('{PACKAGE}.{name}')"
    run(script, tmp_path)


def test_one_version():
    assert importlib.metadata.version("focalcodec-jax") == focalcodec_jax.__version__


def run(script: str, folder: Path) -> None:
    """Run a script in a process of its own, outside the repository."""
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr


def test_importing_does_no_work(tmp_path: Path):
    """No backend starts, and no heavy package is imported, until a function needs it."""
    script = """
import sys, focalcodec_jax, focalcodec_jax.cli, focalcodec_jax.convert.importing, focalcodec_jax.train
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a backend was started"
heavy = {"torch", "transformers", "librosa", "matplotlib.pyplot", "huggingface_hub"} & sys.modules.keys()
assert not heavy, heavy
"""
    run(script, tmp_path)


def test_processes_that_read_audio_start_without_jax(tmp_path: Path):
    script = f"import sys, {PACKAGE}.recordings.readers; assert not {{'jax', 'flax', 'pyarrow'}} & sys.modules.keys()"
    run(script, tmp_path)
