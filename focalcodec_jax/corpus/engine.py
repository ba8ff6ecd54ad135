"""The engine applies a method of the codec to many arrays of different lengths and keeps all devices busy.

Items are collected in buckets of similar length. A full bucket becomes a batch, which is sent to the devices while they
compute earlier batches. Its results are fetched after a few more batches were sent. All batches of a bucket have the
same shape. Each bucket is therefore compiled once, in the background, when its first item arrives.
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

from focalcodec_jax.corpus.progress import DeviceUsage
from focalcodec_jax.errors import FocalCodecError
from focalcodec_jax.flops import of_jaxpr, peak_flops
from focalcodec_jax.inference import Axis, Codec

BATCHES_AHEAD = 3
"""Maximum number of batches on the devices. If there are more, the results of the first one are fetched."""
PATIENCE = 64
"""A bucket that is not full is sent after this many other batches, which limits the waiting time of an item."""

Item = tuple[Any, np.ndarray]
"""A key that identifies the item, and an array."""


@dataclass
class Meter:
    """Times in seconds and amounts of work of an engine."""

    started: float = field(default_factory=time.monotonic)
    busy: float = 0.0
    """Time in which the devices computed."""
    compiling: float = 0.0
    """Time in which the engine waited for a program to be compiled."""
    batches: int = 0
    real: int = 0
    """Total length of all items."""
    padded: int = 0
    """Total length of all batches, including padding and empty rows."""
    flop: int = 0
    """Floating-point operations of all batches."""

    def usage(self, peak: float | None) -> DeviceUsage:
        """Use of the devices so far.

        Args:
            peak: peak of all devices in FLOP/s, or None if unknown.
        """
        elapsed = max(time.monotonic() - self.started, 1e-9)
        busy, compiling = min(1.0, self.busy / elapsed), self.compiling / elapsed
        return DeviceUsage(
            elapsed_seconds=elapsed,
            busy_share=busy,
            waiting_share=max(0.0, 1 - busy - compiling),
            compiling_share=compiling,
            padding_share=1 - self.real / self.padded if self.padded else 0.0,
            mfu=None if peak is None else self.flop / elapsed / peak,
        )


@dataclass
class Bucket:
    """Items of similar length that wait to become a batch."""

    program: Future
    rows: int
    items: list[Item] = field(default_factory=list)
    since: int = 0
    """Number of batches that were sent before its first item arrived."""


def batch_shape(axis: Axis, length: int, longest: int, batch_seconds: float) -> tuple[int, int]:
    """Rows per device and padded length of the batches for items of this length.

    Args:
        axis: time axis of the items.
        length: length of an item.
        longest: length of the longest item.
        batch_seconds: maximum seconds of audio per device and batch.
    """
    padded = min(axis.bucket(length), longest)
    return max(1, int(batch_seconds * axis.rate_hz / padded)), padded


class Engine:
    """Applies a method of the codec to items of different lengths.

    Args:
        codec: the codec, on its devices.
        method: `sig_to_toks` or `toks_to_sig`.
        axis: time axis of the items.
        longest: length of the longest item.
        batch_seconds: maximum seconds of audio per device and batch. None takes the value of the codec.
    """

    def __init__(self, codec: Codec, method: str, axis: Axis, longest: int, batch_seconds: float | None = None):
        self.codec, self.method, self.axis, self.longest = codec, method, axis, longest
        self.batch_seconds = batch_seconds or codec.batch_seconds
        self.step = codec.compiled(method)
        self.meter = Meter()
        peak = peak_flops(next(iter(codec.batch_sharding.device_set)))
        self._peak_flops = None if peak is None else peak * codec.num_devices
        self._buckets: dict[int, Bucket] = {}
        self._sent: queue.SimpleQueue[tuple[float, jax.Array] | None] = queue.SimpleQueue()

    def shape(self, length: int) -> tuple[int, int]:
        """Rows and padded length of the batches for items of this length, over all devices."""
        rows, padded = batch_shape(self.axis, length, self.longest, self.batch_seconds)
        return rows * self.codec.num_devices, padded

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the results of all items in any order. Results include the padding.

        Raises:
            FocalCodecError: the devices are out of memory, or fail otherwise.
        """
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
                for ready in full or self._overdue():
                    running.append(self._send(ready))
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

    def usage(self) -> DeviceUsage:
        """Use of the devices since the engine was created."""
        return self.meter.usage(self._peak_flops)

    def _bucket(self, array: np.ndarray) -> Bucket:
        rows, length = self.shape(len(array))
        if length not in self._buckets:
            program = self._compilers.submit(self._compile, rows, length, array.dtype)
            self._buckets[length] = Bucket(program, rows)
        return self._buckets[length]

    def _overdue(self) -> list[Bucket]:
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
        lengths = np.ones(bucket.rows, np.int32)  # rows without an item have length 1
        for row, (_, array) in enumerate(items):
            batch[row, : len(array)], lengths[row] = array, len(array)
        before = time.monotonic()
        try:
            program, flop = bucket.program.result()
        except jax.errors.JaxRuntimeError as error:
            raise self._device_error(error) from error
        self.meter.compiling += time.monotonic() - before
        self.meter.batches += 1
        self.meter.flop += flop
        self.meter.real += int(sum(len(array) for _, array in items))
        self.meter.padded += batch.size
        try:
            output = program(self.codec.variables, *jax.device_put((batch, lengths), self.codec.batch_sharding))
        except jax.errors.JaxRuntimeError as error:
            raise self._device_error(error) from error
        self._sent.put((time.monotonic(), output))
        return items, output

    def _watch(self) -> None:
        """Measure how long the devices are busy. The batches are awaited in the order in which they were sent."""
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
            raise self._device_error(error) from error
        for (key, _), row in zip(items, rows, strict=False):  # the last rows may be empty
            yield key, row

    def _device_error(self, error: Exception) -> FocalCodecError:
        reason = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in reason:
            return FocalCodecError(
                f"the devices are out of memory with batches of {self.batch_seconds:g} s per device; choose a smaller "
                "batch_seconds",
                parameter="batch_seconds",
            )
        return FocalCodecError(f"the devices failed: {reason}")
