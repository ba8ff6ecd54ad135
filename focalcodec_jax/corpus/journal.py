"""The journal of a job in its output folder: a plan, and an entry for each finished part.

With the journal, a job can continue after an interruption, and several processes can share a job.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from focalcodec_jax.errors import FocalCodecError
from focalcodec_jax.files import Folder
from focalcodec_jax.recordings.recording import Recording

PLAN = "journal/plan.json"
SMALLEST_HOURS, LARGEST_HOURS, USUAL_SHARDS = 0.5, 100.0, 1000
"""By default, a shard has a thousandth of the hours of the corpus, within these limits."""
LISTING = ("recordings", "listing")
"""Keys of the plan that describe the inputs."""


class Journal:
    """The journal of a job whose parts are numbered from 0.

    Args:
        folder: the output folder.
        options: everything that determines the output. A job can only be continued with equal options.
        layout: returns further content of the plan. It is called only by the process that begins the job.
        digits: number of digits in the names of entries.

    Attributes:
        plan: the plan as stored in the folder.

    Raises:
        FocalCodecError: the folder has the journal of a job with other options, or contains other files.
    """

    def __init__(
        self, folder: Folder, options: Mapping[str, Any], layout: Callable[[], Mapping[str, Any]], digits: int
    ):
        self.folder, self.digits = folder, digits
        plan = self._read_plan()
        if plan is None:
            folder.write(PLAN, json.dumps({**options, **layout()}, indent=2) + "\n")
            plan = self._read_plan() or {}  # another process may have begun the job at the same time
        for key, value in options.items():
            if plan.get(key) != value:
                what = "recordings" if key in LISTING else f"options ({key}: {plan.get(key)}, not {value})"
                raise FocalCodecError(
                    f"{folder.path} was started with other {what}; use the same ones, or another folder"
                )
        self.plan = plan

    def _read_plan(self) -> dict[str, Any] | None:
        content = self.folder.read(PLAN)
        if content is None:
            if others := self.folder.names("") - {"journal"}:  # another process may be about to write the plan
                raise FocalCodecError(
                    f"{self.folder.path} contains other files, such as {min(others)}; give an empty or a new folder"
                )
            return None
        try:
            return json.loads(content)
        except json.JSONDecodeError as error:
            raise FocalCodecError(f"{self.folder.path}/{PLAN} is not readable ({error}); give a new folder") from error

    def stem(self, number: int) -> str:
        """Name of the entry of a part, without its extension."""
        return f"{number:0{self.digits}d}"

    def done(self) -> set[int]:
        """Numbers of the finished parts."""
        names = self.folder.names("journal")
        return {int(name.split(".")[0]) for name in names if name[: self.digits].isdigit()}

    def read(self, number: int) -> Any:
        """Content of the entry of a finished part."""
        content = self.folder.read(f"journal/{self.stem(number)}.json")
        assert content is not None, number
        return json.loads(content)

    def add(self, number: int, content: Any) -> None:
        """Write the entry of a part, which marks it as finished."""
        self.folder.write(f"journal/{self.stem(number)}.json", json.dumps(content) + "\n")

    def remove(self, number: int) -> None:
        """Delete the entry of a part before the part is rewritten, so that an interrupted rewrite is redone."""
        self.folder.remove(f"journal/{self.stem(number)}.json")


@dataclass(frozen=True)
class Shard:
    """A shard of a token data set. It contains the recordings `first` to `last` − 1 of the listing."""

    number: int
    first: int
    last: int


@dataclass
class ShardEntry:
    """Content of a finished shard."""

    recordings: int = 0
    seconds: float = 0.0
    tokens: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    """Number of occurrences of each code, (codebook_size,)."""


def divide(recordings: Sequence[Recording], hours: float | None = None) -> list[Shard]:
    """Divide a listing into shards of consecutive recordings. The same listing always gives the same shards.

    Args:
        recordings: the listing.
        hours: approximate hours of audio per shard. None gives a thousandth of the corpus, within 0.5 to 100 hours.
    """
    estimates = [recording.estimated_seconds for recording in recordings]
    hours = hours or min(max(sum(estimates) / 3600 / USUAL_SHARDS, SMALLEST_HOURS), LARGEST_HOURS)
    shards, first, seconds = [], 0, 0.0
    for index, estimate in enumerate(estimates):
        seconds += estimate
        if seconds >= hours * 3600 or index == len(estimates) - 1:
            shards.append(Shard(len(shards), first, index + 1))
            first, seconds = index + 1, 0.0
    return shards


class DatasetJournal(Journal):
    """The journal of a token data set, whose parts are shards.

    Args:
        recordings: the listing of the inputs.
        options: everything else that determines the data set.
        hours: hours of audio per shard. This is only used when the data set is begun.

    Attributes:
        shards: all shards of the data set.

    Raises:
        FocalCodecError: as in `Journal`.
    """

    def __init__(
        self, folder: Folder, recordings: Sequence[Recording], options: Mapping[str, Any], hours: float | None = None
    ):
        digest = hashlib.sha256()
        for r in recordings:
            digest.update(f"{r.id}\n{r.source}\n{r.start}\n{r.duration}\n{r.channel}\n".encode())
        options = {**options, "recordings": len(recordings), "listing": digest.hexdigest()}

        def layout() -> dict[str, Any]:
            # The bounds are stored because estimated durations can change, for example if a damaged file is replaced.
            return {"bounds": [shard.last for shard in divide(recordings, hours)]}

        super().__init__(folder, options, layout, digits=5)
        bounds = pairwise([0, *self.plan["bounds"]])
        self.shards = [Shard(number, first, last) for number, (first, last) in enumerate(bounds)]

    def entry(self, shard: Shard) -> ShardEntry:
        """The entry of a finished shard."""
        return ShardEntry(**self.read(shard.number))

    def add_entry(self, shard: Shard, entry: ShardEntry) -> None:
        """Mark a shard as finished."""
        self.add(shard.number, asdict(entry))
