"""What can go wrong with a user's input. The command prints these as one line and exits with 2."""

from importlib.util import find_spec


class FocalCodecError(ValueError):
    """Base of every error that names a wrong input and what would be right.

    Args:
        parameter: the library's parameter that the message is about, where a change of it would help. The command
            adds the option of that name to the message.
    """

    def __init__(self, message: str, *, parameter: str | None = None):
        super().__init__(message)
        self.parameter = parameter


class ConfigError(FocalCodecError):
    """A configuration has an unknown key, an impossible value, or parts that do not fit together."""


class CheckpointError(FocalCodecError):
    """A checkpoint cannot be found, read, or fitted into the model it claims to be."""


class AudioError(FocalCodecError):
    """A recording is missing, unreadable, empty, or holds samples that are not numbers."""


class TokenError(FocalCodecError):
    """A token sequence is missing, unreadable, or holds a token outside the codebook."""


class TrainingError(FocalCodecError):
    """A training run cannot go on: its losses are not finite, or its data cannot be read."""


def require(what: str, extra: str, *modules: str) -> None:
    """Refuse to begin without packages that a plain install lacks.

    Args:
        what: that needs them.
        extra: that installs them.

    Raises:
        ConfigError: names them, and how to install them.
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ConfigError(f'{what} needs {", ".join(missing)}: pip install "focalcodec-jax[{extra}]"')
