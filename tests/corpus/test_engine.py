"""The engine: no item waits forever, and a lack of memory is explained."""

import jax
import numpy as np
import pytest

from focalcodec_jax import Codec
from focalcodec_jax.corpus.engine import PATIENCE, Engine
from focalcodec_jax.errors import FocalCodecError


def test_rare_lengths_do_not_wait_for_ever(codec: Codec):
    """A bucket that does not become full is sent after some batches of other buckets."""
    engine = Engine(codec, "sig_to_toks", codec.samples, 16_000, batch_seconds=0.32)
    lengths = [9000] + [5000] * (PATIENCE + 20)
    order = [key for key, _ in engine.run((n, np.zeros(length, np.float32)) for n, length in enumerate(lengths))]
    assert sorted(order) == list(range(len(lengths)))
    assert engine.meter.batches == len(lengths)
    engine = Engine(codec, "sig_to_toks", codec.samples, 16_000, batch_seconds=1.3)
    rows_of_short, _ = engine.shape(5000)
    lengths = [9000] + [5000] * rows_of_short * (PATIENCE + 20)
    order = [key for key, _ in engine.run((n, np.zeros(length, np.float32)) for n, length in enumerate(lengths))]
    assert rows_of_short < order.index(0) < len(lengths) - rows_of_short


def test_out_of_memory_while_compiling_is_named(codec: Codec, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of HBM")

    monkeypatch.setattr(Engine, "_compile", full)
    with pytest.raises(FocalCodecError, match="batch_seconds"):
        list(Engine(codec, "sig_to_toks", codec.samples, 32_000).run([("a", np.zeros(2000, np.float32))]))
