"""Convert a corpus of speech to a data set of tokens.

The listing of the inputs is divided into shards. Of n processes, process i writes the shards i, i + n, i + 2n and so
on. The file of a shard is written first and its journal entry second, each atomically. After an interruption, the same
call writes the shards that have no entry. No recording is lost or repeated. The process that finds all entries writes
the description of the data set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from focalcodec_jax.config import SAMPLE_RATE_HZ, CodecConfig
from focalcodec_jax.corpus import dataset_card, progress as events
from focalcodec_jax.corpus.check import CheckResult, CheckSample
from focalcodec_jax.corpus.engine import Engine, Item
from focalcodec_jax.corpus.journal import DatasetJournal, Shard, ShardEntry
from focalcodec_jax.corpus.options import TokenizeOptions
from focalcodec_jax.corpus.progress import CorpusReport, ProgressCallback
from focalcodec_jax.errors import FocalCodecError
from focalcodec_jax.files import Folder, one_or_more
from focalcodec_jax.inference import Codec
from focalcodec_jax.nn import lengths
from focalcodec_jax.pretrained import DEMO, checkpoint_folder, structure, weights_hash
from focalcodec_jax.recordings.readers import Job, Piece, Readers, Windows, codec_windows
from focalcodec_jax.recordings.recording import Recording
from focalcodec_jax.recordings.sources import list_recordings
from focalcodec_jax.tokens.formats import find_format
from focalcodec_jax.tokens.formats.base import TokenizedRecording, manifest_columns, shard_stem, token_dtype


@dataclass(frozen=True)
class TokenizeReport(CorpusReport):
    """Result of `tokenize`.

    The counts cover the whole data set if it is complete, and otherwise the shards of this process.

    Attributes:
        shards: number of shards of the data set.
        open_shards: number of shards that other processes have not finished. The data set is complete if it is 0.
        recordings: number of recordings with tokens.
        failures: number of recordings that could not be read.
        hours: hours of audio.
        tokens: number of tokens.
        codebook_size: number of codes in the codebook.
        codes_used: number of codes that occur among the tokens.
        token_entropy_bits: entropy of the distribution of the tokens, in bits.
        check: result of encoding a sample again. None if nothing was sampled.
    """

    shards: int
    open_shards: int
    recordings: int
    failures: int
    hours: float
    tokens: int
    codebook_size: int
    codes_used: int
    token_entropy_bits: float
    check: CheckResult | None


def tokenize(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    options: TokenizeOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> TokenizeReport:
    """Convert a corpus of speech to a data set of tokens, or continue an interrupted run.

    Recordings that cannot be read are listed in `failures.jsonl` and counted in the report.

    Args:
        inputs: folders, audio files, globs, manifests, ArrayRecord shards or tars, as paths or URLs.
        output: path or URL of the folder for the data set.
        options: defaults to `TokenizeOptions()`.
        progress: called with the events of `focalcodec_jax.corpus.progress`.

    Raises:
        AudioError: an input does not exist or is empty.
        CheckpointError: the codec cannot be loaded.
        ConfigError: an option is invalid, or a package is missing.
        FocalCodecError: the output folder has other content, the devices fail, or `strict` stops the run.
        OSError: a file cannot be written. The same call then continues with the finished shards.
    """
    options, progress = options or TokenizeOptions(), progress or events.ignore
    find_format(options.format).require_packages("writing")
    corpus = list_corpus(inputs, options, progress)
    plan = DatasetPlan(str(output), corpus, options)
    if not plan.todo:
        return plan.conclude()
    progress(events.CodecLoading(plan.checkpoint))
    codec = Codec.from_pretrained(plan.checkpoint, dtype=options.dtype, device=options.device)
    engine = Engine(codec, "sig_to_toks", codec.samples, corpus.windows.samples, options.batch_seconds)
    tokenizer = Tokenizer(plan, engine, progress)
    tokenizer.run()
    usage = engine.usage()
    return plan.conclude(tokenizer.seconds, usage, tokenizer.sample.encode_again(codec))


@dataclass(frozen=True)
class Corpus:
    """The recordings to tokenize, the configuration of the codec, and the windows of long recordings."""

    recordings: Sequence[Recording]
    config: CodecConfig
    windows: Windows


def list_corpus(
    inputs: str | Path | Sequence[str | Path], options: TokenizeOptions, progress: ProgressCallback
) -> Corpus:
    """List the recordings of the inputs. Audio files are not opened.

    Raises:
        AudioError, CheckpointError, ConfigError: as in `tokenize`.
    """
    config = structure(options.checkpoint or DEMO, dtype=options.dtype)
    windows = codec_windows(config, options.window, options.context)
    progress(events.ListingStarted())
    recordings = list_recordings(one_or_more(inputs))
    progress(events.ListingFinished(len(recordings)))
    return Corpus(recordings, config, windows)


class DatasetPlan:
    """The shards of a data set, and those that this process has to write.

    Attributes:
        todo: shards that this process has to write.
        failures_before: number of failures in each shard that is to be written again, by shard number.

    Raises:
        FocalCodecError: the output folder has other content.
    """

    def __init__(self, output: str, corpus: Corpus, options: TokenizeOptions):
        self.corpus, self.options = corpus, options
        self.checkpoint = options.checkpoint or DEMO
        self.format = find_format(options.format)
        self.columns = manifest_columns(corpus.recordings)
        self.compared = {
            "checkpoint_sha256": weights_hash(checkpoint_folder(self.checkpoint)),
            "dtype": options.dtype,
            "format": options.format,
            "window_seconds": corpus.windows.seconds,
            "context_seconds": corpus.windows.context,
        }
        self.folder = Folder(output)
        self.journal = DatasetJournal(self.folder, corpus.recordings, self.compared, options.shard_hours)
        self.shards = self.journal.shards
        done = self.journal.done()
        index, count = options.process
        self.own = [shard for shard in self.shards if shard.number % count == index]
        self.failures_before: dict[int, int] = {}
        if options.retry_failed:
            failures = {s.number: len(self.journal.entry(s).failures) for s in self.own if s.number in done}
            self.failures_before = {number: count for number, count in failures.items() if count}
        self.todo = [s for s in self.own if s.number not in done or s.number in self.failures_before]

    def conclude(
        self, seconds: float = 0.0, usage: events.DeviceUsage | None = None, check: CheckResult | None = None
    ) -> TokenizeReport:
        """Describe the data set if it is complete, and report its content.

        Args:
            seconds, usage, check: for the report. `seconds` are the seconds of audio that this run processed.
        """
        config = self.corpus.config
        codebook_size = config.quantizer.codebook_size
        missing = {shard.number for shard in self.shards} - self.journal.done()
        entries = [self.journal.entry(shard) for shard in (self.own if missing else self.shards)]
        totals = dataset_card.totals(entries, codebook_size)
        if not missing:
            info = {
                "checkpoint": self.checkpoint,
                **self.compared,
                "token_rate_hz": config.token_rate_hz,
                "codebook_size": codebook_size,
                "sample_rate_hz": config.sample_rate_out_hz,
                **totals,
                "shards": len(entries),
            }
            dataset_card.describe(self.folder, self.format, entries, info)
        return TokenizeReport(
            output=self.folder.path,
            processed_seconds=seconds,
            usage=usage,
            shards=len(self.shards),
            open_shards=len(missing),
            codebook_size=codebook_size,
            check=check,
            **totals,
        )


@dataclass(frozen=True)
class AudioWindow:
    """Identifies a window of a recording in the engine."""

    index: int
    """Index of the recording."""
    number: int
    """Index of the window."""
    count: int
    """Number of windows of the recording."""
    samples: int
    """Length of the window in samples at 16 kHz."""


@dataclass
class OpenShard:
    """A shard that is not finished yet."""

    shard: Shard
    counts: np.ndarray
    """Number of occurrences of each code, (codebook_size,)."""
    rows: dict[int, TokenizedRecording] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all recordings are tokenized or failed."""
        return len(self.rows) + len(self.failures) == self.shard.last - self.shard.first


@dataclass
class OpenRecording:
    """A recording that has tokens for some of its windows."""

    tokens: dict[int, np.ndarray] = field(default_factory=dict)
    duration: float = 0.0
    """Seconds up to the end of its last window."""


class Tokenizer:
    """Writes the shards that are left in a plan.

    Attributes:
        seconds: seconds of audio that were tokenized.
        sample: recordings to be encoded again as a check.
    """

    def __init__(self, plan: DatasetPlan, engine: Engine, progress: ProgressCallback):
        self.plan, self.recordings, self.config = plan, plan.corpus.recordings, plan.corpus.config
        self.engine, self.progress, self.windows = engine, progress, plan.corpus.windows
        self.dtype = token_dtype(self.config.quantizer.codebook_size)
        self.seconds, self.sample = 0.0, CheckSample(plan.options.check)
        self.shards: dict[int, OpenShard] = {}
        self.shard_of: dict[int, OpenShard] = {}
        """The shard of each recording that is neither tokenized nor failed, by index of the recording."""
        self.partial: dict[int, OpenRecording] = {}

    def run(self) -> None:
        """Write the shards.

        Raises:
            FocalCodecError: `strict` is set and a recording cannot be read, or the devices fail.
            OSError: a shard cannot be written.
        """
        shards, plan = self.plan.todo, self.plan
        estimate = sum(r.estimated_seconds for shard in shards for r in self.recordings[shard.first : shard.last])
        plan.folder.sweep("data", {shard_stem(shard.number) for shard in shards})
        plan.folder.sweep("journal", {plan.journal.stem(shard.number) for shard in shards})
        self.progress(events.ProcessingStarted(estimate))
        pieces = Readers(plan.options.workers, self.windows).pieces(self._jobs(shards))
        for key, row in self.engine.run(self._items(pieces)):
            self._collect(key, row)
        assert not self.shards

    def _jobs(self, shards: Sequence[Shard]) -> Iterator[Job]:
        for shard in shards:
            counts = np.zeros(self.config.quantizer.codebook_size, np.int64)
            self.shards[shard.number] = OpenShard(shard, counts)
            for index in range(shard.first, shard.last):
                self.shard_of[index] = self.shards[shard.number]
                yield Job(index, self.recordings[index])

    def _items(self, pieces: Iterator[Piece]) -> Iterator[Item]:
        for piece in pieces:
            if piece.index not in self.shard_of:  # another window of the recording failed
                continue
            if piece.sig is None:
                self._fail(piece.index, piece.problem or "")
                continue
            if piece.count == 1:
                self.sample.offer(piece.index, piece.sig)
            yield AudioWindow(piece.index, piece.number, piece.count, len(piece.sig)), piece.sig

    def _collect(self, key: AudioWindow, row: np.ndarray) -> None:
        if key.index not in self.shard_of:
            return
        toks = row[: lengths.samples_to_tokens(self.config, key.samples)].astype(self.dtype)
        recording = self.partial.setdefault(key.index, OpenRecording())
        recording.tokens[key.number] = self.windows.kept(toks, key.number, key.count, self.config.token_rate_hz)
        end = key.number * self.windows.hop + key.samples / SAMPLE_RATE_HZ
        recording.duration = max(recording.duration, end)
        if len(recording.tokens) == key.count:
            del self.partial[key.index]
            toks = np.concatenate([recording.tokens[number] for number in range(key.count)])
            self._add(key.index, toks, recording.duration)

    def _add(self, index: int, toks: np.ndarray, duration: float) -> None:
        self.sample.add_tokens(index, toks)
        shard = self.shard_of.pop(index)
        shard.rows[index] = TokenizedRecording(self.recordings[index], toks, duration)
        shard.counts += np.bincount(toks, minlength=len(shard.counts))
        self._advance(index, duration)
        self._finish(shard)

    def _fail(self, index: int, problem: str) -> None:
        source = self.recordings[index].source
        message = problem if source in problem else f"{source}: {problem}"
        if self.plan.options.strict:
            raise FocalCodecError(f"{message}; stopped because `strict` is set", parameter="strict")
        shard = self.shard_of.pop(index)
        shard.failures[index] = problem
        self.partial.pop(index, None)
        self.progress(events.RecordingFailed(message))
        self._advance(index, 0.0)
        self._finish(shard)

    def _advance(self, index: int, seconds: float) -> None:
        self.seconds += seconds
        estimate = self.recordings[index].estimated_seconds
        self.progress(events.AudioProcessed(seconds, estimate, self.engine.usage()))

    def _finish(self, shard: OpenShard) -> None:
        """Write the shard and its journal entry, if it is complete."""
        if not shard.complete:
            return
        number, journal = shard.shard.number, self.plan.journal
        del self.shards[number]
        if (before := self.plan.failures_before.get(number)) is not None:
            if len(shard.failures) >= before:
                self.progress(events.ShardKept(number))
                return
            journal.remove(number)
        rows = [shard.rows[index] for index in sorted(shard.rows)]
        file_format = self.plan.format
        file_format.write(self.plan.folder, file_format.shard_name(number), rows, self.plan.columns)
        failures = [
            {"id": self.recordings[index].id, "source": self.recordings[index].source, "reason": reason}
            for index, reason in sorted(shard.failures.items())
        ]
        seconds, tokens = sum(row.duration for row in rows), int(shard.counts.sum())
        journal.add_entry(shard.shard, ShardEntry(len(rows), seconds, tokens, failures, shard.counts.tolist()))
