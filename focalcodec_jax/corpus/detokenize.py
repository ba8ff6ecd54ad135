"""Convert a data set of tokens back to audio files.

The work is divided into the blocks of the data set. When all audio files of a block are written, the block gets a
journal entry.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from focalcodec_jax.corpus import progress as events
from focalcodec_jax.corpus.engine import Engine, Item
from focalcodec_jax.corpus.journal import Journal
from focalcodec_jax.corpus.options import DetokenizeOptions
from focalcodec_jax.corpus.progress import CorpusReport, ProgressCallback
from focalcodec_jax.errors import CheckpointError
from focalcodec_jax.files import Folder
from focalcodec_jax.inference import Codec
from focalcodec_jax.nn import lengths
from focalcodec_jax.pretrained import checkpoint_folder, structure, weights_hash
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.readers import Windows, codec_windows
from focalcodec_jax.tokens.dataset import TokenDataset
from focalcodec_jax.tokens.formats.base import FAILURES, id_path


@dataclass(frozen=True)
class DetokenizeReport(CorpusReport):
    """Result of `detokenize`.

    Attributes:
        blocks: number of blocks of the data set.
        open_blocks: number of blocks that other processes have not finished.
        failures: number of recordings without tokens, in the finished blocks.
    """

    blocks: int
    open_blocks: int
    failures: int


def detokenize(
    dataset: str | Path,
    output: str | Path,
    options: DetokenizeOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> DetokenizeReport:
    """Convert a data set of tokens back to audio, or continue an interrupted run.

    Each recording becomes a file that is named after its id.

    Args:
        dataset: path or URL of a finished data set, as `tokenize` writes it.
        output: path or URL of the folder for the audio files.
        options: defaults to `DetokenizeOptions()`.
        progress: called with the events of `focalcodec_jax.corpus.progress`.

    Raises:
        AudioError: the suffix is not that of a known audio format.
        CheckpointError: the codec cannot be loaded, or its codebook differs from that of the tokens.
        TokenError: the data set is unfinished or unreadable.
        FocalCodecError: the output folder has other content, or the devices fail.
        OSError: a file cannot be written. The same call then continues with the finished blocks.
    """
    options, progress = options or DetokenizeOptions(), progress or events.ignore
    audio.check_name(Path(f"a{options.suffix}"))
    data = TokenDataset(dataset)
    checkpoint = options.checkpoint or str(data.info["checkpoint"])
    config = structure(checkpoint)
    if config.quantizer.codebook_size != data.codebook_size:
        raise CheckpointError(
            f"{checkpoint} has a codebook of {config.quantizer.codebook_size} codes, but the tokens have one of "
            f"{data.codebook_size}"
        )
    folder = Folder(output)
    compared = {
        "data set": data.digest,
        "checkpoint": weights_hash(checkpoint_folder(checkpoint)),
        "suffix": options.suffix,
    }
    journal = Journal(folder, compared, dict, digits=6)
    done = journal.done()
    index, count = options.process
    todo = [block for block in range(index, len(data), count) if block not in done]
    seconds, usage = 0.0, None
    if todo:
        progress(events.CodecLoading(checkpoint))
        codec = Codec.from_pretrained(checkpoint, device=options.device)
        windows = codec_windows(config, options.window, options.context)
        longest = round(windows.seconds * config.token_rate_hz)
        engine = Engine(codec, "toks_to_sig", codec.tokens, longest, options.batch_seconds)
        audio_folder = AudioFolder(folder, journal, options.suffix, codec.sample_rate_hz)
        detokenizer = Detokenizer(data, audio_folder, engine, windows, progress)
        detokenizer.run(todo, max(1, options.workers))
        seconds, usage = detokenizer.seconds, engine.usage()
    return _conclude(journal, len(data), seconds, usage)


def _conclude(journal: Journal, blocks: int, seconds: float, usage: events.DeviceUsage | None) -> DetokenizeReport:
    """List all failures in the output folder if it is complete, and report its content."""
    done = sorted(journal.done())
    failures = [failure for block in done for failure in journal.read(block)]
    if len(done) == blocks:
        journal.folder.write(FAILURES, "".join(json.dumps(failure) + "\n" for failure in failures))
    return DetokenizeReport(journal.folder.path, seconds, usage, blocks, blocks - len(done), len(failures))


@dataclass(frozen=True)
class TokenWindow:
    """Identifies a window of a token sequence in the engine."""

    block: int
    place: int
    """Index of the sequence within the block."""
    number: int
    """Index of the window."""
    count: int
    """Number of windows of the sequence."""
    tokens: int
    """Length of the window."""


@dataclass
class OpenAudioFile:
    """An audio file that is written in order, although its windows arrive in any order."""

    folder: Folder
    name: str
    rate_hz: int
    count: int
    """Number of windows."""
    written: int = 0
    pending: dict[int, np.ndarray] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)
    lock: threading.Lock = field(default_factory=threading.Lock)
    append: Callable[[np.ndarray], None] | None = None

    def add(self, number: int, sig: np.ndarray) -> None:
        """Add the audio of a window, (samples,)."""
        with self.lock:
            try:
                if self.append is None:
                    part = self.stack.enter_context(self.folder.written(self.name))
                    self.append = self.stack.enter_context(audio.writing(part, self.rate_hz))
                self.pending[number] = sig
                while self.written in self.pending:
                    self.append(self.pending.pop(self.written))
                    self.written += 1
                if self.written == self.count:
                    self.stack.close()
            except BaseException as error:
                self.stack.__exit__(type(error), error, error.__traceback__)
                raise


@dataclass(frozen=True)
class AudioFolder:
    """The folder of the audio files, and the journal in it."""

    folder: Folder
    journal: Journal
    suffix: str
    rate_hz: int

    def open(self, id_: str, windows: int) -> OpenAudioFile:
        """The audio file of a recording that arrives in the given number of windows."""
        return OpenAudioFile(self.folder, id_path(id_) + self.suffix, self.rate_hz, windows)


@dataclass
class OpenBlock:
    """A block with audio that is not written yet."""

    missing: int = 0
    """Number of windows that are not written."""
    failures: list[dict[str, str]] = field(default_factory=list)


class Detokenizer:
    """Writes the audio of a token data set.

    Attributes:
        seconds: seconds of audio that were written.
    """

    def __init__(
        self,
        data: TokenDataset,
        output: AudioFolder,
        engine: Engine,
        windows: Windows,
        progress: ProgressCallback,
    ):
        self.data, self.output, self.engine = data, output, engine
        self.windows, self.progress = windows, progress
        self.config = engine.codec.config
        self.seconds = 0.0
        self.blocks: dict[int, OpenBlock] = {}
        self.files: dict[tuple[int, int], OpenAudioFile] = {}
        """Open files by block and by index of the sequence within the block."""

    def run(self, todo: Sequence[int], workers: int) -> None:
        """Write the audio of some blocks.

        Args:
            todo: numbers of the blocks.
            workers: number of threads that write.

        Raises:
            TokenError: a shard cannot be read.
            OSError: a file cannot be written.
        """
        self.progress(events.ProcessingStarted(self.data.mean_tokens * len(todo) / self.config.token_rate_hz))
        writing: deque[tuple[int, Future]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for key, row in self.engine.run(self._items(todo)):
                writing.append((key.block, pool.submit(self._write, key, self._kept(key, row))))
                while len(writing) > 4 * workers or (writing and writing[0][1].done()):
                    self._settle(*writing.popleft())
            while writing:
                self._settle(*writing.popleft())

    def _items(self, todo: Sequence[int]) -> Iterator[Item]:
        rate_hz = self.config.token_rate_hz
        for block in todo:
            self.blocks[block] = opened = OpenBlock()
            items: list[Item] = []
            for place, (id_, toks) in enumerate(self.data[block]):
                if not toks.size:
                    opened.failures.append({"id": id_, "reason": "it has no tokens"})
                    self.progress(events.RecordingFailed(f"{id_} has no tokens"))
                    continue
                count = self.windows.count(len(toks) / rate_hz)
                self.files[block, place] = self.output.open(id_, count)
                for number in range(count):
                    first = round(number * self.windows.hop * rate_hz)
                    last = first + round(self.windows.seconds * rate_hz) if number < count - 1 else len(toks)
                    window = toks[first:last].astype(np.int32)
                    items.append((TokenWindow(block, place, number, count, len(window)), window))
            opened.missing = len(items)
            if not items:
                self._finish(block)
            yield from items

    def _kept(self, key: TokenWindow, row: np.ndarray) -> np.ndarray:
        sig = row[: lengths.tokens_to_samples(self.config, key.tokens)]
        return self.windows.kept(sig, key.number, key.count, self.config.sample_rate_out_hz)

    def _write(self, key: TokenWindow, sig: np.ndarray) -> float:
        self.files[key.block, key.place].add(key.number, sig)
        return len(sig) / self.config.sample_rate_out_hz

    def _settle(self, block: int, written: Future) -> None:
        """Wait until a window is written. The last window of a block finishes the block."""
        seconds = written.result()
        self.seconds += seconds
        self.progress(events.AudioProcessed(seconds, seconds, self.engine.usage()))
        self.blocks[block].missing -= 1
        if not self.blocks[block].missing:
            self._finish(block)

    def _finish(self, block: int) -> None:
        self.output.journal.add(block, self.blocks.pop(block).failures)
        for key in [key for key in self.files if key[0] == block]:
            del self.files[key]
