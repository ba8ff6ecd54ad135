"""Errors about the user's input. The command prints them in one line and exits with code 2."""

import difflib
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from typing import Any


class FocalCodecError(ValueError):
    """Base class of all errors about the user's input.

    Args:
        message: description of the problem, on one line.
        parameter: name of the library parameter to change, if there is one. The command adds the option of that name to
            the message.
    """

    def __init__(self, message: str, *, parameter: str | None = None):
        super().__init__(message)
        self.parameter = parameter


class ConfigError(FocalCodecError):
    """A configuration has an unknown key, an invalid value, or parts that do not fit together."""


class CheckpointError(FocalCodecError):
    """A checkpoint is missing or unreadable, or does not match its configuration."""


class AudioError(FocalCodecError):
    """A recording is missing, unreadable or empty, or contains NaN or infinite samples."""


class TokenError(FocalCodecError):
    """A token sequence is missing or unreadable, or contains a token outside the codebook."""


class TrainingError(FocalCodecError):
    """A training run cannot continue, because its losses are not finite or its data cannot be read."""


def require(what: str, extra: str, *modules: str) -> None:
    """Check that optional packages are installed.

    Args:
        what: the activity that needs the packages, for the error message.
        extra: the extra of this package that installs them.
        modules: import names of the packages.

    Raises:
        ConfigError: A package is missing. The message says how to install it.
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ConfigError(f'{what} needs {", ".join(missing)}: pip install "focalcodec-jax[{extra}]"')


def explain(problem: Any, kind: Any) -> str:
    """Describe one problem that pydantic found in a configuration. For an unknown key, the most similar key is named.

    Args:
        problem: an item of `ValidationError.errors()`.
        kind: the configuration class.
    """
    *outer, last = map(str, problem["loc"] or ("",))
    where = ".".join([*outer, last])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        for key in outer:
            kind = _kinds(kind).get(key)
        known = list(_kinds(kind))
        near = difflib.get_close_matches(last, known, n=1)
        return f"unknown key {where}" + (f" (did you mean {near[0]}?)" if near else "")
    if problem["type"] == "missing":
        return f"{where} is missing"
    message = problem["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    given = problem["input"]
    message += f", got {given!r}" if isinstance(given, str | int | float | bool | list | tuple | None) else ""
    return f"{where}: {message}" if where else message


def _kinds(kind: Any) -> dict[str, Any]:
    """Types of the fields of a configuration class."""
    return {field.name: field.type for field in fields(kind)} if is_dataclass(kind) else {}
