"""Package attributes that are imported on first use."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Create the `__getattr__` of a package, which imports each name from its module on first use.

    Lazy imports let a process that only reads audio start without JAX. They also keep optional packages optional.

    Args:
        package: name of the package.
        modules: maps each name to the module of the package that defines it.

    Returns:
        The function to assign to the package's `__getattr__`.
    """

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return find
