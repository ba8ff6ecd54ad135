"""The type checker that jaxtyping applies to the library while the tests run."""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float


@contextmanager
def checks_off() -> Iterator[None]:
    """Without checks, as for an export, whose symbolic lengths are no instances of int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
