"""A corpus in, a token data set out.

The listing is cut into shards; of n processes the i-th makes every n-th. A shard's file appears whole, then its entry
in the journal; so whatever is killed, the same command makes the shards without an entry, and no recording is lost or
comes twice. The process that finds all entries there describes the data set.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from rich.console import Console

from focalcodec_jax.config import SAMPLE_RATE_HZ, CodecConfig
from focalcodec_jax.console import one_line
from focalcodec_jax.corpus.dataset_card import describe
from focalcodec_jax.corpus.engine import Engine, Item
from focalcodec_jax.corpus.journal import Entry, Journal, Shard
from focalcodec_jax.corpus.progress import Progress
from focalcodec_jax.errors import FocalCodecError
from focalcodec_jax.files import Folder
from focalcodec_jax.inference import Codec
from focalcodec_jax.nn import lengths
from focalcodec_jax.nn.codec import FocalCodec
from focalcodec_jax.pretrained import checkpoint_folder, weights_hash
from focalcodec_jax.recordings.readers import Job, Piece, Readers
from focalcodec_jax.recordings.recording import Recording
from focalcodec_jax.recordings.windows import Windows
from focalcodec_jax.tokens import formats
from focalcodec_jax.tokens.formats import FAILURES, Format, Row

CHECK_SECONDS = 30.0
"""Longest recording that is encoded once more at the end."""


@dataclass
class OpenShard:
    """A shard of which some recordings are still to come."""

    shard: Shard
    counts: np.ndarray
    rows: dict[int, Row] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return len(self.rows) + len(self.failures) == self.shard.last - self.shard.first


@dataclass
class OpenRecording:
    """A recording of which some windows are still to come."""

    tokens: dict[int, np.ndarray] = field(default_factory=dict)
    duration: float = 0.0
    """Seconds to the end of the last window so far."""


@dataclass(frozen=True)
class Task:
    """What is to become of the recordings.

    Attributes:
        checkpoint: name or folder of the codec; config: its configuration, with the compute dtype.
        shard_hours: about so much audio in a shard.
        process: which this is, from 0, and of how many that share the work.
        retry_failed: make shards again in which recordings failed.
    """

    checkpoint: str
    config: CodecConfig
    windows: Windows
    format: Format = Format.parquet
    shard_hours: float | None = None
    process: tuple[int, int] = (0, 1)
    retry_failed: bool = False


class Plan:
    """What is to be done in an output folder, and what is left of it for this process.

    Raises:
        FocalCodecError: the folder holds something else.
    """

    def __init__(self, output: str, recordings: Sequence[Recording], task: Task):
        self.recordings, self.task = recordings, task
        self.columns = formats.columns(recordings)
        self.options = {
            "checkpoint_sha256": weights_hash(checkpoint_folder(task.checkpoint)),
            "dtype": task.config.dtype,
            "format": task.format.value,
            "window_seconds": task.windows.seconds,
            "context_seconds": task.windows.context,
        }
        self.folder = Folder(output)
        self.journal = Journal(self.folder, recordings, self.options, task.shard_hours)
        self.shards = self.journal.shards
        done = self.journal.done()
        index, of = task.process
        self.mine = [shard for shard in self.shards if shard.number % of == index]
        self.failed: dict[int, int] = {}
        """Recordings that failed in shards that are to be made again."""
        if task.retry_failed:
            failed = {s.number: len(self.journal.entry(s).failures) for s in self.mine if s.number in done}
            self.failed = {number: count for number, count in failed.items() if count}
        self.todo = [shard for shard in self.mine if shard.number not in done or shard.number in self.failed]

    def conclude(self, console: Console) -> int:
        """Describe the data set, if all of it is there; says what there is, and returns how many recordings failed."""
        missing = {shard.number for shard in self.shards} - self.journal.done()
        if missing:
            failures = sum(len(self.journal.entry(shard).failures) for shard in self.mine)
            text = (
                f"{len(missing)} of {len(self.shards)} shards are still open; the last process describes the data set"
            )
            console.print(text, highlight=False, soft_wrap=True)
            return failures
        config = self.task.config
        info = describe(
            self.folder,
            self.journal,
            {
                "checkpoint": self.task.checkpoint,
                **self.options,
                "token_rate_hz": config.token_rate_hz,
                "codebook_size": config.quantizer.codebook_size,
                "sample_rate_hz": config.sample_rate_out_hz,
            },
        )
        console.print(
            f"{info['recordings']:,} recordings, {info['hours']:.2f} h → {info['tokens']:,} tokens in "
            f"{info['shards']} shard(s) in {one_line(self.folder.path)}; {info['codes_used']:,} of "
            f"{info['codebook_size']:,} codes in use, {info['token_entropy_bits']:.2f} bits of entropy a token",
            highlight=False,
            soft_wrap=True,
        )
        if info["failures"]:
            console.print(
                f"[yellow]{info['failures']} recording(s) could not be read; see "
                f"{one_line(self.folder.path)}/{FAILURES}. "
                "--retry-failed tries them again[/]",
                soft_wrap=True,
            )
        return info["failures"]


class Tokenizer:
    """Makes the shards that are left of a plan.

    Args:
        strict: stop at the first recording that cannot be read.
        check: recordings to encode once more at the end, one by one.
    """

    def __init__(self, plan: Plan, engine: Engine, readers: Readers, *, strict: bool = False, check: int = 0):
        self.plan, self.recordings, self.config = plan, plan.recordings, plan.task.config
        self.engine, self.readers, self.strict, self.check = engine, readers, strict, check
        self.dtype = formats.token_dtype(self.config.quantizer.codebook_size)
        self.open: dict[int, OpenShard] = {}
        self.shard_of: dict[int, int] = {}
        self.begun: dict[int, OpenRecording] = {}
        self.sample: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        self.seen = 0
        self.random = random.Random(0)

    def run(self, console: Console) -> None:
        """Make them.

        Raises:
            FocalCodecError: with `strict`, a recording could not be read; or the devices ran out of memory.
            OSError: a shard could not be written. Shards made before stay, and the same command goes on.
        """
        shards, plan = self.plan.todo, self.plan
        estimate = sum(r.estimated_seconds for shard in shards for r in self.recordings[shard.first : shard.last])
        plan.folder.sweep("data", {formats.shard_stem(shard.number) for shard in shards})
        plan.folder.sweep("journal", {shard.entry.split(".")[0] for shard in shards})
        with Progress(console, estimate, self.engine.meter) as self.progress:
            for key, row in self.engine.run(self._items(self.readers.pieces(self._jobs(shards)))):
                self._collect(key, row)
        assert not self.open

    def report(self, console: Console) -> None:
        """Say how it went."""
        meter, progress, mfu = self.engine.meter, self.progress, self.engine.mfu
        console.print(
            f"{progress.seconds / 3600:.2f} h in {meter.elapsed:.1f} s, {progress.speed}; "
            f"{100 * meter.compiling_share:.0f} % compiling; {100 * meter.padding_share:.0f} % of it is padding"
            + ("" if mfu is None else f"; {100 * mfu:.1f} % of the devices' bfloat16 peak"),
            highlight=False,
            soft_wrap=True,
        )
        if self.sample:
            wrong, tokens, count = self.misses()
            console.print(
                f"miss rate {100 * wrong / max(1, tokens):.2f} %: {wrong} of {tokens:,} tokens differ in {count} "
                "recordings encoded once more, one by one, in float32",
                highlight=False,
                soft_wrap=True,
            )

    def _jobs(self, shards: Sequence[Shard]) -> Iterator[Job]:
        for shard in shards:
            self.open[shard.number] = OpenShard(shard, np.zeros(self.config.quantizer.codebook_size, np.int64))
            for index in range(shard.first, shard.last):
                self.shard_of[index] = shard.number
                yield Job(index, self.recordings[index])

    def _items(self, pieces: Iterator[Piece]) -> Iterator[Item]:
        for piece in pieces:
            if piece.index not in self.shard_of:  # another window of it failed
                continue
            if piece.sig is None:
                self._fail(piece.index, piece.problem or "")
                continue
            if piece.count == 1:
                self._maybe_sample(piece.index, piece.sig)
            yield (piece.index, piece.number, piece.count, len(piece.sig)), piece.sig

    def _collect(self, key, row: np.ndarray) -> None:
        index, number, count, samples = key
        if index not in self.shard_of:
            return
        windows = self.readers.windows
        toks = row[: lengths.samples_to_tokens(self.config, samples)].astype(self.dtype)
        recording = self.begun.setdefault(index, OpenRecording())
        recording.tokens[number] = windows.kept(toks, number, count, self.config.token_rate_hz)
        recording.duration = max(recording.duration, number * windows.hop + samples / SAMPLE_RATE_HZ)
        if len(recording.tokens) == count:
            del self.begun[index]
            self._keep(index, np.concatenate([recording.tokens[n] for n in range(count)]), recording.duration)

    def _keep(self, index: int, toks: np.ndarray, duration: float) -> None:
        if index in self.sample:
            self.sample[index] = self.sample[index][0], toks
        recording = self.recordings[index]
        shard = self.open[self.shard_of.pop(index)]
        shard.rows[index] = Row(recording, toks, duration)
        shard.counts += np.bincount(toks, minlength=len(shard.counts))
        self.progress.add(duration, recording.estimated_seconds)
        self._finish(shard)

    def _fail(self, index: int, problem: str) -> None:
        recording = self.recordings[index]
        named = problem if recording.source in problem else f"{recording.source}: {problem}"
        if self.strict:
            raise FocalCodecError(f"{named} (stopped, for --strict)")
        shard = self.open[self.shard_of.pop(index)]
        shard.failures[index] = problem
        self.begun.pop(index, None)
        self.progress.failed(named)
        self.progress.add(0.0, recording.estimated_seconds)
        self._finish(shard)

    def _finish(self, shard: OpenShard) -> None:
        if not shard.whole:
            return
        del self.open[shard.shard.number]
        if (before := self.plan.failed.get(shard.shard.number)) is not None:
            if len(shard.failures) >= before:
                self.progress.note(f"shard {shard.shard.number} stays as it was: no more of it can be read now")
                return
            self.plan.journal.take_back(shard.shard)
        rows = [shard.rows[index] for index in sorted(shard.rows)]
        formats.write(self.plan.folder, self.plan.task.format, shard.shard.number, rows, self.plan.columns)
        failures = [
            {"id": self.recordings[index].id, "source": self.recordings[index].source, "reason": reason}
            for index, reason in sorted(shard.failures.items())
        ]
        seconds, tokens = sum(row.duration for row in rows), int(shard.counts.sum())
        self.plan.journal.add(shard.shard, Entry(len(rows), seconds, tokens, failures, shard.counts.tolist()))

    def _maybe_sample(self, index: int, sig: np.ndarray) -> None:
        """Keep an even choice of what has come so far."""
        if not self.check or len(sig) > CHECK_SECONDS * SAMPLE_RATE_HZ:
            return
        self.seen += 1
        if len(self.sample) == self.check:
            if self.random.random() > self.check / self.seen:
                return
            del self.sample[self.random.choice(list(self.sample))]
        self.sample[index] = sig, None

    def misses(self) -> tuple[int, int, int]:
        """Encode the sample once more, one by one, in float32: tokens that differ, tokens, recordings."""
        codec = self.engine.codec
        if self.config.dtype != "float32":
            exact = FocalCodec(replace(self.config, dtype="float32"))
            codec = Codec(exact, codec.variables, list(codec.batch_sharding.device_set))
        pairs = [(codec.encode(sig, SAMPLE_RATE_HZ)[0], toks) for sig, toks in self.sample.values() if toks is not None]
        return sum(int((a != b).sum()) for a, b in pairs), sum(len(a) for a, _ in pairs), len(pairs)
