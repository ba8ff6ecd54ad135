"""Batches: which recordings, in which order, at which shapes.

Step n's batch is a function of the configuration and n alone. So a run resumes exactly from its step number, on any
number of processes, devices and workers.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.errors import AudioError
from focalcodec_jax.recordings import audio
from focalcodec_jax.recordings.readers import end_with_parent
from focalcodec_jax.recordings.recording import Recording, read
from focalcodec_jax.recordings.sources import find

from .run_config import DataConfig
from .stages import Batch

NOTHING = -1
"""Index of a row that only fills a batch."""


class Planned(NamedTuple):
    """One batch of the plan."""

    number: int
    samples: int
    """Length that its recordings are padded or cropped to."""
    indices: tuple[int, ...]


class Plan:
    """Every batch of a run, in order: `plan[n]`.

    Each epoch shuffles all recordings, and takes each once: crops in batches of any length, whole recordings in
    batches of like length. What does not fill a batch goes to the next longer bucket. The last batch is filled up:
    with further crops, or with empty rows.
    """

    def __init__(self, samples: np.ndarray, config: DataConfig, *, seed: int | None, align: int):
        """
        Args:
            samples: length of each recording.
            seed: of the shuffling; None keeps the order by length, for validation.
            align: bucket lengths are multiples of this many samples.
        """
        self.samples, self.seed = samples, seed
        self.batch_size, self.crop_samples = config.batch_size, None
        if config.crop_seconds is not None:
            self.crop_samples = round(config.crop_seconds * SAMPLE_RATE_HZ / align) * align or align
            self.buckets = np.array([self.crop_samples])
            self.bucket_of = np.zeros(len(samples), int)
        else:
            self.buckets = bucket_lengths(samples, config.bucket_growth, align)
            self.bucket_of = np.searchsorted(self.buckets, samples)
        self.batches_per_epoch = -(-len(samples) // self.batch_size)

    def __getitem__(self, number: int) -> Planned:
        epoch, inside = divmod(number, self.batches_per_epoch)
        return Planned(number, *self._epoch(epoch)[inside])

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
                filled = np.resize(shuffled, full) if self.crop_samples else np.full(full, NOTHING)
                filled[: len(waiting)] = waiting
                waiting = filled
            whole, left = waiting[:full], waiting[full:]
            batches += [(int(length), tuple(map(int, row))) for row in whole.reshape(-1, self.batch_size)]
        order = range(len(batches)) if rng is None else rng.permutation(len(batches))
        return [batches[i] for i in order]


def bucket_lengths(samples: np.ndarray, growth: float, align: int) -> np.ndarray:
    """Lengths that recordings are padded to: each `growth` times the one before, down from the longest."""
    longest, shortest = int(samples.max()), int(samples.min())
    count = math.ceil(math.log(max(longest / max(shortest, align), 1), growth)) + 1
    lengths = {-(-int(longest / growth**step) // align) * align for step in range(count)}
    return np.array(sorted(lengths))


@dataclass(frozen=True)
class Load:
    """Reads a planned batch: the rows that this process needs."""

    recordings: Sequence[Recording]
    rows: tuple[int, ...]
    crop: bool
    seed: int
    speed: tuple[float, float] = (1.0, 1.0)

    def __call__(self, planned: Planned) -> dict[str, Any]:
        count = len(self.rows)
        sig, lengths = np.zeros((count, planned.samples), np.float32), np.zeros(count, np.int32)
        crop, bad = np.zeros(count, np.float32), np.zeros(count, np.int32)
        reasons = []
        for row, place in enumerate(self.rows):
            index = planned.indices[place]
            if index == NOTHING:
                continue
            # Of the place in the global batch, so that no division of the work changes it.
            rng = np.random.default_rng((self.seed, planned.number, place))
            crop[row] = rng.random(dtype=np.float32)
            try:
                sound = read(self.recordings[index])
            except AudioError as error:
                bad[row] = 1
                reasons.append((self.recordings[index].id, str(error)))
                continue
            if self.crop:
                # a recording of another rate, taken for one of 16 kHz, plays at another speed
                rate_hz = round(SAMPLE_RATE_HZ * np.exp(rng.uniform(*np.log(self.speed))))
                wanted = math.ceil(planned.samples * rate_hz / SAMPLE_RATE_HZ)
                start = int(crop[row] * (max(0, len(sound) - wanted) + 1))
                sound = audio.resample(sound[start : start + wanted], rate_hz, SAMPLE_RATE_HZ)
            sound = sound[: planned.samples]
            sig[row, : len(sound)], lengths[row] = sound, len(sound)
        return {"sig": sig, "lengths": lengths, "crop": crop, "bad": bad, "reasons": reasons}


class Pipeline:
    """The batches of a run, read ahead in worker processes and put on the devices."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        config: DataConfig,
        sharding: jax.sharding.NamedSharding,
        *,
        seed: int | None,
        align: int,
    ):
        self.plan = Plan(np.array([r.samples for r in recordings]), config, seed=seed, align=align)
        self.config, self.sharding = config, sharding
        shape = (config.batch_size,)
        mine = sharding.addressable_devices_indices_map(shape).values()
        rows = sorted({row for index in mine if index for row in range(*index[0].indices(config.batch_size))})
        self.rows = {row: place for place, row in enumerate(rows)}
        crop = config.crop_seconds is not None
        self.load = Load(recordings, tuple(rows), crop, seed or 0, config.speed)

    def batches(
        self, start: int, stop: int, workers: int
    ) -> Generator[tuple[Batch, list[tuple[str, str]]], None, None]:
        """Batches start … stop − 1 on the devices, each with the recordings it lacks, by id and reason."""
        import grain

        batches = grain.MapDataset.range(start, stop).map(self.plan.__getitem__).map(self.load)
        # one thread in a worker process keeps the order of reading within a shard; more where there is no worker
        read = batches.to_iter_dataset(grain.ReadOptions(num_threads=1 if workers else 4, prefetch_buffer_size=4))
        if workers:
            _parse_absl_flags()
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            read = read.mp_prefetch(options, worker_init_fn=end_with_parent)
        with closing(iter(read)) as elements:
            for element in elements:
                reasons = element.pop("reasons")
                yield Batch(**{name: self._put(array) for name, array in element.items()}), reasons

    def _put(self, local: np.ndarray) -> jax.Array:
        """The global array of which this process holds some rows."""
        shape = (self.config.batch_size, *local.shape[1:])

        def piece(index):
            rows = range(*index[0].indices(shape[0]))
            return local[[self.rows[row] for row in rows]]

        return jax.make_array_from_callback(shape, self.sharding, piece)


def _parse_absl_flags() -> None:
    """Grain's worker processes read absl's flags, which nobody parses outside `absl.app.run`."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def select(inputs: Sequence[str], config: DataConfig, what: str) -> tuple[list[Recording], list[Recording]]:
    """Recordings of a corpus within the configured lengths, and those without.

    Raises:
        AudioError: nothing is given, nothing is found, or nothing is within the lengths.
    """
    if not inputs:
        raise AudioError(f"no recordings to {what} on: give data.{what} folders or manifests, as prepare writes them")
    found = find(inputs)
    kept = [r for r in found if r.samples == 0 or config.min_seconds <= r.seconds <= config.max_seconds]
    if not any(r.samples for r in found):
        raise AudioError(
            f"none of the {len(found)} recordings of data.{what} can be opened, such as {found[0].path}; paths in a "
            "manifest are relative to it"
        )
    if not any(r.samples for r in kept):
        raise AudioError(
            f"none of the {len(found)} recordings of data.{what} lasts {config.min_seconds:g} to "
            f"{config.max_seconds:g} s"
        )
    taken = {r.id for r in kept}
    return kept, [r for r in found if r.id not in taken]
