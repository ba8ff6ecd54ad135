"""What is to be done, and what has been: the plan of a data set, and an entry for each shard that is whole."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from focalcodec_jax.errors import FocalCodecError
from focalcodec_jax.files import Folder
from focalcodec_jax.recordings.recording import Recording

PLAN = "journal/plan.json"
SMALLEST_HOURS, LARGEST_HOURS, USUAL_SHARDS = 0.5, 100.0, 1000
"""A shard is a thousandth of the corpus, within these."""


@dataclass(frozen=True)
class Shard:
    """A shard of the data set: recordings `first` to before `last` of the listing."""

    number: int
    first: int
    last: int

    @property
    def entry(self) -> str:
        """Name of its entry in the journal; that is written last, and says that the shard is whole."""
        return f"{self.number:05d}.json"


@dataclass
class Entry:
    """What a whole shard holds."""

    recordings: int = 0
    seconds: float = 0.0
    tokens: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    """How often each code comes."""


def shards(recordings: Sequence[Recording], hours: float | None = None) -> list[Shard]:
    """Consecutive recordings of about as many hours each; the same listing gives the same shards."""
    estimates = [recording.estimated_seconds for recording in recordings]
    hours = hours or min(max(sum(estimates) / 3600 / USUAL_SHARDS, SMALLEST_HOURS), LARGEST_HOURS)
    found, first, seconds = [], 0, 0.0
    for index, estimate in enumerate(estimates):
        seconds += estimate
        if seconds >= hours * 3600 or index == len(estimates) - 1:
            found.append(Shard(len(found), first, index + 1))
            first, seconds = index + 1, 0.0
    return found


class Journal:
    """The journal in the folder of a data set.

    Args:
        options: what else decides about its content.
        hours: about so much audio in a shard; only asked for when the data set is begun.

    Raises:
        FocalCodecError: the folder holds the work of another command, or files of something else.
    """

    def __init__(
        self, folder: Folder, recordings: Sequence[Recording], options: Mapping[str, Any], hours: float | None = None
    ):
        self.folder = folder
        digest = hashlib.sha256()
        for r in recordings:
            digest.update(f"{r.id}\n{r.source}\n{r.start}\n{r.duration}\n{r.channel}\n".encode())
        now = {**options, "recordings": len(recordings), "listing": digest.hexdigest()}
        if (plan := self._kept()) is None:
            # The bounds are kept, since estimates change, as when a broken file is replaced.
            bounds = [shard.last for shard in shards(recordings, hours)]
            folder.write(PLAN, json.dumps({**now, "bounds": bounds}, indent=2) + "\n")
            plan = self._kept() or {}  # another process may have begun at the same time
        if changed := [key for key in now if plan.get(key) != now[key]]:
            key = changed[0]
            what = f"{key} {plan.get(key)}, not {now[key]}" if key in options else "recordings"
            raise FocalCodecError(f"{folder.path} was begun with other {what}; give the same, or another folder")
        bounds = plan["bounds"]
        self.shards = [Shard(n, first, last) for n, (first, last) in enumerate(pairwise([0, *bounds]))]

    def _kept(self) -> dict[str, Any] | None:
        content = self.folder.read(PLAN)
        if content is None:
            if others := self.folder.names("") - {"journal"}:  # where another process may be about to write the plan
                raise FocalCodecError(
                    f"{self.folder.path} holds other files, such as {min(others)}; give an empty or a new folder"
                )
            return None
        try:
            return json.loads(content)
        except json.JSONDecodeError as error:
            raise FocalCodecError(f"{self.folder.path}/{PLAN} is not readable ({error}); give a new folder") from error

    def done(self) -> set[int]:
        """Numbers of the shards that are whole."""
        return {int(name.split(".")[0]) for name in self.folder.names("journal") if name[:5].isdigit()}

    def entry(self, shard: Shard) -> Entry:
        content = self.folder.read(f"journal/{shard.entry}")
        assert content is not None, shard
        return Entry(**json.loads(content))

    def take_back(self, shard: Shard) -> None:
        """A shard is about to be replaced: if that is cut off, it is open."""
        self.folder.remove(f"journal/{shard.entry}")

    def add(self, shard: Shard, entry: Entry) -> None:
        self.folder.write(f"journal/{shard.entry}", json.dumps(asdict(entry)) + "\n")
