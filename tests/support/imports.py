"""The import graph of the package, read from source files without importing them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "focalcodec_jax"
FOLDERS = {
    PACKAGE: ROOT / PACKAGE,
    **{f"{PACKAGE}.{name}": ROOT / name for name in ("train", "convert", "configs")},
}
"""Folder of each package that setuptools' package-dir maps."""


@dataclass(frozen=True)
class Import:
    """One imported module, of this package or another."""

    name: str
    at_start: bool
    """Whether importing the importing module imports this one. False inside a function and for a lazy name."""


@cache
def modules() -> dict[str, Path]:
    """The source file of every module, by its installed name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Everything that a module imports, with relative imports resolved. Imports for type checkers are left out."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return tuple(_found(ast.parse(path.read_text(encoding="utf-8")), package, at_start=True))


def _found(node: ast.AST, package: str, at_start: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, at_start) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(name, at_start) for name in _targets(child, package))
        elif isinstance(child, ast.Call) and getattr(child.func, "id", "") == "lazy_names":
            yield from (Import(f"{package}.{name}", False) for name in _lazy(child))
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _found(other, package, at_start)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _found(child, package, at_start and not inside)


def _targets(node: ast.ImportFrom, package: str) -> Iterator[str]:
    """Modules that `from … import …` imports: submodules by their own name, other names by their module."""
    base = node.module or ""
    if node.level:
        parent = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parent, *([node.module] if node.module else [])])
    for alias in node.names:
        name = f"{base}.{alias.name}"
        yield name if name in modules() else base


def _lazy(call: ast.Call) -> Iterator[str]:
    table = call.args[1]
    assert isinstance(table, ast.Dict), "lazy_names takes a literal dict, which tools can read"
    for value in table.values:
        assert isinstance(value, ast.Constant)
        yield str(value.value)


def own(module: str, *, at_start: bool = False) -> set[str]:
    """Modules of this package that a module imports, anywhere in it or only when it is itself imported."""
    return {one.name for one in imports(module) if one.name in modules() and (one.at_start or not at_start)}


def third_party(module: str, *, at_start: bool = False) -> set[str]:
    """Top-level names of the other packages that a module imports."""
    names = {one.name.split(".")[0] for one in imports(module) if one.at_start or not at_start}
    return names - {PACKAGE}


def closure(module: str) -> set[str]:
    """Modules of this package that importing a module imports, itself and parent packages included."""
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
            waiting += [*parents, *own(name, at_start=True)]
    return reached


def cycles() -> list[set[str]]:
    """Groups of modules that import each other when imported, directly or through others."""
    direct = {name: own(name, at_start=True) - {name} for name in modules()}

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(direct[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += direct[name]
        return seen

    reached = {name: reach(name) for name in direct}
    groups = [{other for other in reached[name] if name in reached[other]} for name in direct if name in reached[name]]
    return [group for number, group in enumerate(groups) if group not in groups[:number]]
