"""A token data set in, audio files out.

Work is cut into the blocks in which a data set is read; a block whose files are all there has an entry in the journal.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from focalcodec_jax.console import one_line
from focalcodec_jax.corpus.engine import Engine, Item
from focalcodec_jax.corpus.progress import Progress
from focalcodec_jax.errors import FocalCodecError
from focalcodec_jax.files import Folder
from focalcodec_jax.nn import lengths
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.windows import Windows
from focalcodec_jax.tokens.dataset import Blocks
from focalcodec_jax.tokens.formats import FAILURES, path_of

PLAN = "journal/plan.json"


class Output:
    """The folder of audio files, and the journal in it.

    Raises:
        FocalCodecError: it holds the audio of another data set or checkpoint, or files of something else.
    """

    def __init__(self, path: str, plan: dict[str, str]):
        self.folder = Folder(path)
        kept = self.folder.read(PLAN)
        if kept is None and (others := self.folder.names("") - {"journal"}):
            raise FocalCodecError(f"{path} holds other files, such as {min(others)}; give an empty or a new folder")
        if kept is not None and (before := json.loads(kept)) != plan:
            key = next(key for key in plan if before.get(key) != plan[key])
            raise FocalCodecError(f"{path} was begun with another {key}; give the same, or another folder")
        if kept is None:
            self.folder.write(PLAN, json.dumps(plan, indent=2) + "\n")

    def done(self) -> set[int]:
        return {int(name.split(".")[0]) for name in self.folder.names("journal") if name[:6].isdigit()}

    def add(self, block: int, failures: list[dict[str, str]]) -> None:
        self.folder.write(f"journal/{block:06d}.json", json.dumps(failures) + "\n")

    def conclude(self, blocks: int, console: Console) -> int:
        """List what failed, if all is there; returns how many."""
        done = sorted(self.done())
        failures = [one for n in done for one in json.loads(self.folder.read(f"journal/{n:06d}.json") or b"[]")]
        if len(done) < blocks:
            console.print(f"{blocks - len(done)} of {blocks} blocks are left to other processes", highlight=False)
        else:
            self.folder.write(FAILURES, "".join(json.dumps(failure) + "\n" for failure in failures))
            console.print(f"{one_line(self.folder.path)} is complete, {len(failures)} failed", highlight=False)
        return len(failures)


@dataclass
class OpenAudio:
    """An audio file that is written in order, as its windows come in any order; it appears when the last is there."""

    folder: Folder
    name: str
    rate_hz: int
    count: int
    written: int = 0
    waiting: dict[int, np.ndarray] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)
    lock: threading.Lock = field(default_factory=threading.Lock)
    put: Callable[[np.ndarray], None] | None = None

    def add(self, number: int, sig: np.ndarray) -> None:
        with self.lock:
            try:
                if self.put is None:
                    part = self.stack.enter_context(self.folder.written(self.name))
                    self.put = self.stack.enter_context(audio.writing(part, self.rate_hz))
                self.waiting[number] = sig
                while self.written in self.waiting:
                    self.put(self.waiting.pop(self.written))
                    self.written += 1
                if self.written == self.count:
                    self.stack.close()
            except BaseException as error:
                self.stack.__exit__(type(error), error, error.__traceback__)
                raise


@dataclass
class OpenBlock:
    """A block of which some audio is still to come."""

    left: int
    failures: list[dict[str, str]] = field(default_factory=list)


class Detokenizer:
    """Writes a token data set's audio.

    Args:
        suffix: of the files, which says their format, such as .flac.
        workers: threads that write.
    """

    def __init__(self, blocks: Blocks, output: Output, engine: Engine, windows: Windows, suffix: str, workers: int):
        self.blocks, self.output, self.engine, self.windows = blocks, output, engine, windows
        self.suffix, self.workers = suffix, workers
        self.config = engine.codec.config
        self.open: dict[int, OpenBlock] = {}
        self.files: dict[tuple[int, int], OpenAudio] = {}

    def run(self, todo: Sequence[int], console: Console) -> None:
        """Write the audio of these blocks.

        Raises:
            TokenError: a shard cannot be read.
            OSError: a file cannot be written. What was written before stays, and the same command goes on.
        """
        estimate = self.blocks.mean_tokens * len(todo) / self.config.token_rate_hz
        writing: deque[tuple[int, Future]] = deque()
        with Progress(console, estimate, self.engine.meter) as self.progress, ThreadPoolExecutor(self.workers) as pool:
            for key, row in self.engine.run(self._items(todo)):
                block, place, number, count, tokens = key
                sig = self._kept(row, number, count, tokens)
                writing.append((block, pool.submit(self._write, (block, place), number, count, sig)))
                while len(writing) > 4 * self.workers or (writing and writing[0][1].done()):
                    self._settle(*writing.popleft())
            while writing:
                self._settle(*writing.popleft())
        hours, elapsed = self.progress.seconds / 3600, self.engine.meter.elapsed
        console.print(
            f"{hours:.2f} h of audio in {elapsed:.1f} s, {self.progress.speed}",
            highlight=False,
            soft_wrap=True,
        )

    def _items(self, todo: Sequence[int]) -> Iterator[Item]:
        rate_hz, samples_rate_hz = self.config.token_rate_hz, self.config.sample_rate_out_hz
        for block in todo:
            rows = self.blocks[block]
            self.open[block] = opened = OpenBlock(0)
            pieces: list[Item] = []
            for place, (id_, toks) in enumerate(rows):
                if not toks.size:
                    opened.failures.append({"id": id_, "reason": "it has no tokens"})
                    self.progress.failed(f"{id_} has no tokens")
                    continue
                count = self.windows.count(len(toks) / rate_hz)
                name = path_of(id_) + self.suffix
                self.files[block, place] = OpenAudio(self.output.folder, name, samples_rate_hz, count)
                for number in range(count):
                    first = round(number * self.windows.hop * rate_hz)
                    last = first + round(self.windows.seconds * rate_hz) if number < count - 1 else len(toks)
                    piece = toks[first:last].astype(np.int32)
                    pieces.append(((block, place, number, count, len(piece)), piece))
            opened.left = len(pieces)
            if not pieces:
                self._finish(block)
            yield from pieces

    def _kept(self, row: np.ndarray, number: int, count: int, tokens: int) -> np.ndarray:
        sig = row[: lengths.tokens_to_samples(self.config, tokens)]
        return self.windows.kept(sig, number, count, self.config.sample_rate_out_hz)

    def _write(self, key: tuple[int, int], number: int, count: int, sig: np.ndarray) -> float:
        self.files[key].add(number, sig)
        return len(sig) / self.config.sample_rate_out_hz

    def _settle(self, block: int, written: Future) -> None:
        seconds = written.result()
        self.progress.add(seconds, seconds)
        self.open[block].left -= 1
        if not self.open[block].left:
            self._finish(block)

    def _finish(self, block: int) -> None:
        self.output.add(block, self.open.pop(block).failures)
        for key in [key for key in self.files if key[0] == block]:
            del self.files[key]
