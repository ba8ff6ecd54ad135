"""Batches of recordings: their order, their lengths, and reading them.

The batch of step n depends only on the configuration and n. A run therefore resumes exactly from its step number, on
any number of processes, devices and workers.
"""

import dataclasses
import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from focalcodec_jax.config import SAMPLE_RATE_HZ, CodecConfig
from focalcodec_jax.errors import AudioError
from focalcodec_jax.nn.lengths import bucket_length
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.readers import end_with_parent
from focalcodec_jax.recordings.recording import Recording, read
from focalcodec_jax.recordings.sources import find

from .progress import ProgressCallback, RunMessage
from .run_config import TrainConfig
from .sections import DataConfig
from .stages import Batch

NO_RECORDING = -1
"""Index of an empty row in a planned batch."""
Reasons = list[tuple[str, str]]
"""Unreadable recordings, by id and reason."""


class PlannedBatch(NamedTuple):
    """One batch of a plan."""

    number: int
    samples: int
    """Number of samples that its recordings are padded or cropped to."""
    indices: tuple[int, ...]
    """Recordings by their index in the corpus, or `NO_RECORDING`."""


class BatchPlan:
    """The batches of a run. `plan[n]` is batch n.

    Each epoch shuffles all recordings and uses each of them once. Crops form batches in any order. Whole recordings
    form batches of similar length. Recordings that do not fill a batch move to the next longer bucket. If the last
    batch is not full, it is filled with further crops or with empty rows.

    Args:
        samples: (recordings,) length of each recording in samples.
        config: batch size, crops and buckets.
        seed: seed of the shuffling. None keeps the order by length, for validation.
        align: bucket lengths are multiples of this many samples.
    """

    def __init__(self, samples: np.ndarray, config: DataConfig, *, seed: int | None, align: int):
        self.samples, self.seed = samples, seed
        self.batch_size, self.crop_samples = config.batch_size, None
        if config.crop_seconds is not None:
            self.crop_samples = round(config.crop_seconds * SAMPLE_RATE_HZ / align) * align or align
            self.buckets = np.array([self.crop_samples])
            self.bucket_of = np.zeros(len(samples), int)
        else:
            self.buckets = corpus_buckets(samples, config.bucket_growth, align)
            self.bucket_of = np.searchsorted(self.buckets, samples)
        self.batches_per_epoch = -(-len(samples) // self.batch_size)

    def __getitem__(self, number: int) -> PlannedBatch:
        epoch, inside = divmod(number, self.batches_per_epoch)
        return PlannedBatch(number, *self._epoch(epoch)[inside])

    @lru_cache(maxsize=2)  # noqa: B019 - a run holds one plan for training and one for validation
    def _epoch(self, epoch: int) -> list[tuple[int, tuple[int, ...]]]:
        rng = None if self.seed is None else np.random.default_rng((self.seed, epoch))
        shuffled = np.argsort(self.samples, kind="stable") if rng is None else rng.permutation(len(self.samples))
        batches, left = [], np.empty(0, int)
        for bucket, length in enumerate(self.buckets):
            waiting = np.concatenate([left, shuffled[self.bucket_of[shuffled] == bucket]])
            full = len(waiting) // self.batch_size * self.batch_size
            if bucket == len(self.buckets) - 1 and full < len(waiting):
                full += self.batch_size
                filled = np.resize(shuffled, full) if self.crop_samples else np.full(full, NO_RECORDING)
                filled[: len(waiting)] = waiting
                waiting = filled
            whole, left = waiting[:full], waiting[full:]
            batches += [(int(length), tuple(map(int, row))) for row in whole.reshape(-1, self.batch_size)]
        order = range(len(batches)) if rng is None else rng.permutation(len(batches))
        return [batches[i] for i in order]


def corpus_buckets(samples: np.ndarray, growth: float, align: int) -> np.ndarray:
    """Bucket lengths of a corpus, by the rule of `bucket_length`. The last one is cut to the longest recording."""
    longest = -(-int(samples.max()) // align) * align
    buckets = [bucket_length(1, align, growth)]
    while buckets[-1] < longest:
        buckets.append(bucket_length(buckets[-1] + 1, align, growth))
    return np.array([*buckets[:-1], longest])


@dataclass(frozen=True)
class BatchReader:
    """Reads the rows of a planned batch that this process needs."""

    recordings: Sequence[Recording]
    rows: tuple[int, ...]
    """Indices of the rows within the global batch."""
    crop: bool
    """Whether to crop recordings at random positions."""
    seed: int
    speed: tuple[float, float] = (1.0, 1.0)
    """Slowest and fastest playback speed of crops."""

    def __call__(self, planned: PlannedBatch) -> tuple[Batch, Reasons]:
        """Read the rows as NumPy arrays. Also returns the recordings that cannot be read."""
        count = len(self.rows)
        sig, lengths = np.zeros((count, planned.samples), np.float32), np.zeros(count, np.int32)
        crop, bad = np.zeros(count, np.float32), np.zeros(count, np.int32)
        reasons = []
        for row, place in enumerate(self.rows):
            index = planned.indices[place]
            if index == NO_RECORDING:
                continue
            # The seed depends on the row of the global batch, so that the division among processes has no influence.
            rng = np.random.default_rng((self.seed, planned.number, place))
            crop[row] = rng.random(dtype=np.float32)
            try:
                decoded = read(self.recordings[index])
            except AudioError as error:
                bad[row] = 1
                reasons.append((self.recordings[index].id, str(error)))
                continue
            if self.crop:
                # If audio is resampled from a rate other than its own, its speed changes.
                rate_hz = round(SAMPLE_RATE_HZ * np.exp(rng.uniform(*np.log(self.speed))))
                wanted = math.ceil(planned.samples * rate_hz / SAMPLE_RATE_HZ)
                start = int(crop[row] * (max(0, len(decoded) - wanted) + 1))
                decoded = audio.resample(decoded[start : start + wanted], rate_hz, SAMPLE_RATE_HZ)
            decoded = decoded[: planned.samples]
            sig[row, : len(decoded)], lengths[row] = decoded, len(decoded)
        return Batch(sig, lengths, crop, bad), reasons


class Pipeline:
    """The batches of a run, which are read ahead in worker processes and put on the devices.

    Args:
        recordings: recordings of the corpus.
        config: batch size, crops and buckets.
        sharding: sharding of the batch axis.
        seed, align: as in `BatchPlan`.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        config: DataConfig,
        sharding: NamedSharding,
        *,
        seed: int | None,
        align: int,
    ):
        self.plan = BatchPlan(np.array([r.samples for r in recordings]), config, seed=seed, align=align)
        self.config, self.sharding = config, sharding
        shape = (config.batch_size,)
        mine = sharding.addressable_devices_indices_map(shape).values()
        rows = sorted({row for index in mine if index for row in range(*index[0].indices(config.batch_size))})
        self.rows = {row: place for place, row in enumerate(rows)}
        crop = config.crop_seconds is not None
        self.reader = BatchReader(recordings, tuple(rows), crop, seed or 0, config.speed)

    def batches(self, start: int, stop: int, workers: int) -> Generator[tuple[Batch, Reasons], None, None]:
        """Yield the batches `start` to `stop` − 1 on the devices, each with the recordings that could not be read."""
        import grain

        batches = grain.MapDataset.range(start, stop).map(self.plan.__getitem__).map(self.reader)
        # One thread per worker process keeps the reading order within a shard. Without workers, four threads read.
        read = batches.to_iter_dataset(grain.ReadOptions(num_threads=1 if workers else 4, prefetch_buffer_size=4))
        if workers:
            _parse_absl_flags()
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            read = read.mp_prefetch(options, worker_init_fn=end_with_parent)
        with closing(iter(read)) as elements:
            for batch, reasons in elements:
                yield jax.tree.map(self._put, batch), reasons

    def _put(self, local: np.ndarray) -> jax.Array:
        """Create the global array from the rows of this process."""
        shape = (self.config.batch_size, *local.shape[1:])

        def piece(index):
            rows = range(*index[0].indices(shape[0]))
            return local[[self.rows[row] for row in rows]]

        return jax.make_array_from_callback(shape, self.sharding, piece)


def _parse_absl_flags() -> None:
    """Mark absl's flags as parsed. Grain's worker processes read them, and only `absl.app.run` parses them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def pipelines(
    config: TrainConfig, sharding: NamedSharding, codec: CodecConfig, report: ProgressCallback
) -> tuple[Pipeline, Pipeline | None]:
    """Create the training and validation data. The validation data are None without `data.valid`.

    Raises:
        AudioError: no recordings are given or found, or none has an allowed length.
    """
    align = codec.encoder.samples_per_frame * math.prod(codec.compressor.factors)
    train, left_out = select(config.data.train, config.data, "train")
    valid = select(config.data.valid, config.data, "valid")[0] if config.data.valid else None
    hours = sum(recording.seconds for recording in train) / 3600
    note = f"; {len(left_out)} too short or long" if left_out else ""
    report(RunMessage(f"{len(train)} recordings, {hours:.2f} h{note}"))
    whole = dataclasses.replace(config.data, crop_seconds=None)
    return (
        Pipeline(train, config.data, sharding, seed=config.seed, align=align),
        None if valid is None else Pipeline(valid, whole, sharding, seed=None, align=align),
    )


def select(inputs: Sequence[str], config: DataConfig, split: str) -> tuple[list[Recording], list[Recording]]:
    """Find the recordings of a corpus. Returns those within the configured lengths, and the others.

    Args:
        inputs: inputs of the corpus.
        config: minimum and maximum length.
        split: key of `data` that names the inputs, for error messages.

    Raises:
        AudioError: no inputs are given, no recording can be opened, or none has an allowed length.
    """
    if not inputs:
        raise AudioError(
            f"data.{split} is empty; give folders or manifests of recordings, such as the output of prepare"
        )
    found = find(inputs)
    kept = [r for r in found if r.samples == 0 or config.min_seconds <= r.seconds <= config.max_seconds]
    if not any(r.samples for r in found):
        raise AudioError(
            f"none of the {len(found)} recordings of data.{split} can be opened, such as {found[0].path}; paths in a "
            "manifest are relative to it"
        )
    if not any(r.samples for r in kept):
        raise AudioError(
            f"none of the {len(found)} recordings of data.{split} lasts {config.min_seconds:g} to "
            f"{config.max_seconds:g} s"
        )
    taken = {r.id for r in kept}
    return kept, [r for r in found if r.id not in taken]
