"""The engine: arrays of many lengths through one compiled step, in batches of nearly constant size, all devices busy.

Items come from an iterator and wait in buckets of like length. A full bucket is a batch: it is sent to the devices
while earlier ones are still computed, and its results are fetched when a few more have been sent. Each bucket has one
shape, so that it is compiled once; that begins in the background with the bucket's first item.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from focalcodec_jax.errors import FocalCodecError
from focalcodec_jax.flops import of_jaxpr, peak_flops
from focalcodec_jax.inference import Axis, Codec

BATCHES_AHEAD = 3
"""Batches sent to the devices before the first one's results are fetched."""
PATIENCE = 64
"""After so many batches without filling up, a bucket is sent as it is, so that nothing waits for long."""

Item = tuple[Any, np.ndarray]
"""A key, and an array of any length."""


@dataclass
class Meter:
    """What the engine did; times in seconds."""

    started: float = field(default_factory=time.monotonic)
    busy: float = 0.0
    """Time that the devices had something to do."""
    compiling: float = 0.0
    """Time that nothing could go on before a program was compiled."""
    batches: int = 0
    real: int = 0
    """Length of all items."""
    padded: int = 0
    """Length of all batches, padding and empty rows included."""
    flop: int = 0
    """Operations of all batches."""

    @property
    def elapsed(self) -> float:
        return max(time.monotonic() - self.started, 1e-9)

    @property
    def busy_share(self) -> float:
        return min(1.0, self.busy / self.elapsed)

    @property
    def compiling_share(self) -> float:
        return self.compiling / self.elapsed

    @property
    def waiting_share(self) -> float:
        """Time that the devices had nothing to do for want of data."""
        return max(0.0, 1 - self.busy_share - self.compiling_share)

    @property
    def padding_share(self) -> float:
        return 1 - self.real / self.padded if self.padded else 0.0


@dataclass
class Bucket:
    """Items of like length that wait for company."""

    program: Future
    rows: int
    items: list[Item] = field(default_factory=list)
    since: int = 0
    """Batches sent before its first item came."""


def batch_shape(axis: Axis, length: int, longest: int, batch_seconds: float) -> tuple[int, int]:
    """Rows for one device, and padded length, of the batches for items of this length."""
    padded = min(axis.bucket(length), longest)
    return max(1, int(batch_seconds * axis.rate_hz / padded)), padded


class Engine:
    """Applies a method of the codec to items of any length.

    Args:
        method: `sig_to_toks` or `toks_to_sig`.
        axis: what an item's length counts.
        longest: length of the longest item.
        batch_seconds: most audio that one device is given at once; by default as `Codec`.
    """

    def __init__(self, codec: Codec, method: str, axis: Axis, longest: int, batch_seconds: float | None = None):
        self.codec, self.method, self.axis, self.longest = codec, method, axis, longest
        self.batch_seconds = batch_seconds or codec.batch_seconds
        self.step = codec.compiled(method)
        self.meter = Meter()
        self._buckets: dict[int, Bucket] = {}
        self._sent: queue.SimpleQueue[tuple[float, jax.Array] | None] = queue.SimpleQueue()

    def shape(self, length: int) -> tuple[int, int]:
        """Rows and length of the batches that an item of this length goes into."""
        rows, padded = batch_shape(self.axis, length, self.longest, self.batch_seconds)
        return rows * self.codec.num_devices, padded

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        """Results of all items, still padded, in any order."""
        threading.Thread(target=self._watch, daemon=True).start()
        self._compilers = ThreadPoolExecutor(4)
        running: deque[tuple[list[Item], jax.Array]] = deque()
        try:
            for key, array in items:
                bucket = self._bucket(array)
                if not bucket.items:
                    bucket.since = self.meter.batches
                bucket.items.append((key, array))
                full = [bucket] if len(bucket.items) == bucket.rows else []
                for late in full or self._impatient():
                    running.append(self._send(late))
                while len(running) > BATCHES_AHEAD:
                    yield from self._fetched(*running.popleft())
            for bucket in self._buckets.values():
                if bucket.items:
                    running.append(self._send(bucket))
                    if len(running) > BATCHES_AHEAD:
                        yield from self._fetched(*running.popleft())
            while running:
                yield from self._fetched(*running.popleft())
        finally:
            self._sent.put(None)
            self._compilers.shutdown(wait=False, cancel_futures=True)

    @property
    def mfu(self) -> float | None:
        """Share of the devices' bfloat16 peak that was used; None where that is not known, as of CPUs."""
        device = next(iter(self.codec.batch_sharding.device_set))
        peak = peak_flops(device)
        return None if peak is None else self.meter.flop / self.meter.elapsed / peak / self.codec.num_devices

    def _bucket(self, array: np.ndarray) -> Bucket:
        rows, length = self.shape(len(array))
        if length not in self._buckets:
            program = self._compilers.submit(self._compile, rows, length, array.dtype)
            self._buckets[length] = Bucket(program, rows)
        return self._buckets[length]

    def _impatient(self) -> list[Bucket]:
        return [b for b in self._buckets.values() if b.items and self.meter.batches - b.since > PATIENCE]

    def _compile(self, rows: int, length: int, dtype: np.dtype) -> Any:
        sharding = self.codec.batch_sharding
        batch = jax.ShapeDtypeStruct((rows, length), dtype, sharding=sharding)
        lengths = jax.ShapeDtypeStruct((rows,), np.int32, sharding=sharding)
        traced = self.step.trace(self.codec.variables, batch, lengths)
        return traced.lower().compile(), of_jaxpr(traced.jaxpr.jaxpr)

    def _send(self, bucket: Bucket) -> tuple[list[Item], jax.Array]:
        items, bucket.items = bucket.items, []
        _, length = self.shape(max(len(array) for _, array in items))
        batch = np.zeros((bucket.rows, length), items[0][1].dtype)
        lengths = np.ones(bucket.rows, np.int32)  # rows without an item are one sample of silence
        for row, (_, array) in enumerate(items):
            batch[row, : len(array)], lengths[row] = array, len(array)
        before = time.monotonic()
        try:
            program, flop = bucket.program.result()
        except jax.errors.JaxRuntimeError as error:
            raise self._explained(error) from error
        self.meter.compiling += time.monotonic() - before
        self.meter.batches += 1
        self.meter.flop += flop
        self.meter.real += int(sum(len(array) for _, array in items))
        self.meter.padded += batch.size
        try:
            output = program(self.codec.variables, *jax.device_put((batch, lengths), self.codec.batch_sharding))
        except jax.errors.JaxRuntimeError as error:
            raise self._explained(error) from error
        self._sent.put((time.monotonic(), output))
        return items, output

    def _watch(self) -> None:
        """Notes when each batch is done, in the order they were sent."""
        last = 0.0
        while sent := self._sent.get():
            began, output = sent
            try:
                output.block_until_ready()
            except Exception:
                return
            now = time.monotonic()
            self.meter.busy += now - max(began, last)
            last = now

    def _fetched(self, items: list[Item], output: jax.Array) -> Iterator[Item]:
        try:
            rows = np.asarray(output)
        except jax.errors.JaxRuntimeError as error:
            raise self._explained(error) from error
        for (key, _), row in zip(items, rows, strict=False):  # the last rows may be filling
            yield key, row

    def _explained(self, error: Exception) -> FocalCodecError:
        reason = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in reason:
            reason = f"out of memory with batches of {self.batch_seconds:g} s a device; give fewer with --batch-seconds"
        return FocalCodecError(f"the devices failed: {reason}")
