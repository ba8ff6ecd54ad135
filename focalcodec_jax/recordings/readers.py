"""Read recordings in worker processes. Long recordings are read in overlapping windows.

Results arrive in any order, and a limited number of them is read ahead. A recording that crashes its worker process is
reported like any other unreadable recording.
"""

import math
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

from focalcodec_jax.config import SAMPLE_RATE_HZ, CodecConfig
from focalcodec_jax.errors import AudioError, ConfigError, FocalCodecError
from focalcodec_jax.recordings.recording import Recording, open_recording, read_from, span

WINDOW_SECONDS, CONTEXT_SECONDS = 60, 2
JOB_RECORDINGS, JOB_SECONDS = 8, 60.0
"""Upper limits of one request to a worker process. Larger requests need more memory, smaller ones have more overhead.
"""
JOBS_AHEAD = 3
"""Requests per worker that are queued or running."""


@dataclass(frozen=True)
class Windows:
    """Overlapping windows of recordings longer than `seconds`.

    At each inner end of a window, the results for `context` seconds are dropped. The neighbouring windows provide them.
    Both lengths are whole seconds, which are whole numbers of samples at every rate. Each window can therefore be read
    by itself.
    """

    seconds: int
    context: int

    @property
    def hop(self) -> int:
        """Seconds from the start of one window to the start of the next."""
        return self.seconds - 2 * self.context

    @property
    def samples(self) -> int:
        """Length of a window in samples at 16 kHz."""
        return self.seconds * SAMPLE_RATE_HZ

    def count(self, seconds: float) -> int:
        """Number of windows of a recording that lasts `seconds`."""
        return 1 if seconds <= self.seconds else math.ceil((seconds - 2 * self.context) / self.hop)

    def kept(self, values: np.ndarray, number: int, count: int, rate_hz: float) -> np.ndarray:
        """Remove the context from the values of a window.

        Args:
            values: tokens or samples of the window, with time on the first axis.
            number: index of the window.
            count: number of windows.
            rate_hz: rate of the values.
        """
        first = round(self.context * rate_hz) if number else 0
        last = len(values) if number == count - 1 else round((self.seconds - self.context) * rate_hz)
        return values[first:last]


def codec_windows(config: CodecConfig, seconds: int = WINDOW_SECONDS, context: int = CONTEXT_SECONDS) -> Windows:
    """Windows for a codec. Each begins at the start of a token and, in a causal codec, of an attention chunk.

    Args:
        config: configuration of the codec.
        seconds: minimum length of a window, rounded up to the grid of the codec.
        context: minimum length of the context at each end, at least 1, rounded up to the grid of the codec.

    Raises:
        ConfigError: the context is shorter than a second, or it fills the window.
    """
    frames = math.prod(config.compressor.factors)
    if config.encoder.causal:
        frames = math.lcm(frames, config.encoder.chunk_frames)
    samples = config.encoder.samples_per_frame * frames
    grid = samples // math.gcd(samples, SAMPLE_RATE_HZ)
    windows = Windows(*(math.ceil(value / grid) * grid for value in (seconds, context)))
    if windows.context < 1:
        raise ConfigError(
            "windows need at least 1 s of context, because their last frames depend on later audio", parameter="context"
        )
    if windows.hop <= 0:
        raise ConfigError(
            f"nothing is left of a window of {seconds} s without {context} s of context at each end", parameter="window"
        )
    return windows


@dataclass(frozen=True, slots=True)
class Job:
    """A recording to read, or one window of it."""

    index: int
    recording: Recording
    number: int = 0
    """Index of the window."""
    count: int | None = None
    """Number of windows. None means that the file was not opened yet."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The audio of a recording, or of one window of it."""

    index: int
    number: int
    """Index of the window."""
    count: int
    """Number of windows of the recording."""
    sig: np.ndarray | None
    """(samples,) float32 at 16 kHz. None if it cannot be read."""
    problem: str | None = None
    """Why it cannot be read."""


def read_piece(job: Job, windows: Windows) -> Piece:
    """Read a whole recording, or one window if it is longer than a window."""
    index, recording, number, count = job.index, job.recording, job.number, job.count
    try:
        with open_recording(recording, whole=count is None) as file:
            if count is None:
                count = windows.count(span(recording, file)[1] / file.samplerate)
            last = number == count - 1
            sig = read_from(recording, file, number * windows.hop, None if last else windows.seconds)
        return Piece(index, number, count, sig)
    except AudioError as error:
        return Piece(index, number, count or 1, None, str(error))
    except Exception as error:  # an unexpected error in one recording must not stop the others
        return Piece(index, number, count or 1, None, f"{recording.source}: {type(error).__name__}: {error}")


def read_pieces(windows: Windows, jobs: Sequence[Job]) -> list[Piece]:
    """Read several jobs, as `read_piece` reads one."""
    return [read_piece(job, windows) for job in jobs]


@dataclass
class Readers:
    """Worker processes that read recordings.

    Attributes:
        workers: number of worker processes. 0 reads in a thread of this process.
        windows: windows of long recordings.
    """

    workers: int
    windows: Windows

    def pieces(self, jobs: Iterable[Job]) -> Iterator[Piece]:
        """Read the audio of all jobs, in any order."""
        batch: list[Job] = []
        waiting: deque[Job] = deque()  # further windows of opened recordings, read before new recordings
        source = iter(jobs)
        done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        running: dict[Future, list[Job]] = {}
        pool, began = self._pool(), False
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
                    pieces = future.result()
                except BrokenProcessPool:  # `submit` also raises it, if a worker died in the meantime
                    if not began:
                        self._check_start()
                    batch = [*batch, *(job for jobs in running.values() for job in jobs)]
                    running, done, pool = {}, queue.SimpleQueue(), self._pool()
                    pieces = self._one_by_one(batch)
                began = True
                jobs_by_index = {job.index: job for job in batch}
                for piece in pieces:
                    if piece.number == 0 and piece.count > 1 and piece.sig is not None:
                        job = jobs_by_index[piece.index]
                        waiting += [replace(job, number=n, count=piece.count) for n in range(1, piece.count)]
                    yield piece
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _pool(self) -> ProcessPoolExecutor | ThreadPoolExecutor:
        if not self.workers:
            return ThreadPoolExecutor(1)
        context = multiprocessing.get_context("spawn")  # forking a process with JAX's threads can deadlock
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=end_with_parent)

    def _check_start(self) -> None:
        """Check that a worker process can start.

        Raises:
            FocalCodecError: no worker process starts. The recordings are not the cause.
        """
        with self._pool() as pool:
            try:
                pool.submit(os.getpid).result()
            except BrokenProcessPool as error:
                raise workers_cannot_start() from error

    def _one_by_one(self, jobs: Iterable[Job]) -> Iterator[Piece]:
        """Read jobs one at a time after a worker process died, to find out which recording crashes it."""
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


def workers_cannot_start() -> FocalCodecError:
    """The error for worker processes that end before they do anything, as in a script without a main guard."""
    return FocalCodecError(
        'the worker processes cannot start; a script must call this function below `if __name__ == "__main__":`, '
        "because each worker imports the script",
        parameter="workers",
    )


def end_with_parent(*_) -> None:
    """Initialize a worker process so that it ends when its parent process ends, even if the parent is killed.

    The worker ignores Ctrl-C, which the terminal sends to all processes. The parent ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
