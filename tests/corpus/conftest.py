"""A small codec, whose programs all tests of this folder share, and a folder of recordings."""

import functools
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import mixed_recordings
from support.training import checkpoint

from focalcodec_jax import Codec
from focalcodec_jax.corpus.engine import Engine

load = functools.cache(Codec.from_pretrained)
compile_ = Engine._compile
programs: dict[tuple, Future] = {}


def compile_once(engine: Engine, rows: int, length: int, dtype: np.dtype) -> Any:
    future: Future = Future()
    key = (id(engine.codec), engine.method, rows, length, dtype)
    if programs.setdefault(key, future) is future:
        try:
            future.set_result(compile_(engine, rows, length, dtype))
        except BaseException as error:
            future.set_exception(error)
    return programs[key].result()


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory) -> str:
    return checkpoint(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module", autouse=True)
def codec(codec_folder: str) -> Iterator[Codec]:
    """The codec in the folder CHECKPOINT. It is loaded once, and each of its programs is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHECKPOINT", codec_folder)
        patch.setattr(Codec, "from_pretrained", staticmethod(load))
        patch.setattr(Engine, "_compile", compile_once)
        yield load(codec_folder, device=None)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return mixed_recordings(tmp_path_factory.mktemp("corpus") / "speech")
