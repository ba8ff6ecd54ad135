"""Reading recordings in worker processes: out of order, a bounded number ahead, none of them able to end the run."""

import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from focalcodec_jax.errors import AudioError
from focalcodec_jax.recordings.recording import Recording, opened, read_from, span
from focalcodec_jax.recordings.windows import Windows

JOB_RECORDINGS, JOB_SECONDS = 8, 60.0
"""Most that a worker process is given at once: enough to hide the cost of asking it, few enough to hold in memory."""
JOBS_AHEAD = 3


@dataclass(frozen=True, slots=True)
class Job:
    """A recording to read; or one window of it, of several."""

    index: int
    recording: Recording
    number: int = 0
    count: int | None = None
    """Windows it has; None before its file was looked at."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A recording's audio, or that of one window of it; or why there is none."""

    index: int
    number: int
    count: int
    sig: np.ndarray | None
    """(samples,) float32 at 16 kHz."""
    problem: str | None = None


def read_piece(job: Job, windows: Windows) -> Piece:
    """Read a recording, or of a long one the asked window."""
    index, recording, number, count = job.index, job.recording, job.number, job.count
    try:
        with opened(recording, whole=count is None) as file:
            if count is None:
                count = windows.count(span(recording, file)[1] / file.samplerate)
            last = number == count - 1
            sig = read_from(recording, file, number * windows.hop, None if last else windows.seconds)
        return Piece(index, number, count, sig)
    except AudioError as error:
        return Piece(index, number, count or 1, None, str(error))
    except Exception as error:  # whatever is wrong with a recording, it is one of many
        return Piece(index, number, count or 1, None, f"{recording.source}: {type(error).__name__}: {error}")


def read_pieces(windows: Windows, jobs: Sequence[Job]) -> list[Piece]:
    return [read_piece(job, windows) for job in jobs]


@dataclass
class Readers:
    """Worker processes that read recordings.

    Attributes:
        workers: how many; none reads in threads of this process.
    """

    workers: int
    windows: Windows

    def pieces(self, jobs: Iterable[Job]) -> Iterator[Piece]:
        """The audio of all jobs, in the order in which it is read."""
        batch: list[Job] = []
        waiting: deque[Job] = deque()  # windows of recordings that were begun come before new recordings
        source = iter(jobs)
        done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        running: dict[Future, list[Job]] = {}
        pool = self._pool()
        try:
            while True:
                try:
                    while len(running) < JOBS_AHEAD * max(1, self.workers) and (batch := _next_batch(waiting, source)):
                        future = pool.submit(partial(read_pieces, self.windows), batch)
                        running[future] = batch
                        future.add_done_callback(done.put)
                    if not running:
                        return
                    batch = running.pop(future := done.get())
                    found = future.result()
                except BrokenProcessPool:  # raised by `submit` too, where a worker died meanwhile
                    batch = [*batch, *(job for jobs in running.values() for job in jobs)]
                    running, done, pool = {}, queue.SimpleQueue(), self._pool()
                    found = self._one_by_one(batch)
                jobs_by_index = {job.index: job for job in batch}
                for piece in found:
                    if piece.number == 0 and piece.count > 1 and piece.sig is not None:
                        job = jobs_by_index[piece.index]
                        waiting += [replace(job, number=n, count=piece.count) for n in range(1, piece.count)]
                    yield piece
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _pool(self) -> ProcessPoolExecutor | ThreadPoolExecutor:
        if not self.workers:
            return ThreadPoolExecutor(1)
        context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would lose
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=end_with_parent)

    def _one_by_one(self, jobs: Iterable[Job]) -> Iterator[Piece]:
        """After a worker process died: find out over which recording."""
        pool = self._pool()
        for job in jobs:
            try:
                yield from pool.submit(read_pieces, self.windows, [job]).result()
            except BrokenProcessPool:
                pool = self._pool()
                problem = (
                    f"{job.recording.source} ended the process that read it: out of memory, or a fault in libsndfile"
                )
                yield Piece(job.index, job.number, job.count or 1, None, problem)
        pool.shutdown()


def _next_batch(waiting: deque[Job], source: Iterator[Job]) -> list[Job]:
    batch: list[Job] = []
    seconds = 0.0
    while len(batch) < JOB_RECORDINGS and seconds < JOB_SECONDS:
        job = waiting.popleft() if waiting else next(source, None)
        if job is None:
            break
        batch.append(job)
        seconds += job.recording.estimated_seconds
    return batch


def end_with_parent(*_) -> None:
    """In a worker: end when the main process does, not before, when Ctrl-C goes to all processes, and not after,
    when that process was killed and could tell nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
