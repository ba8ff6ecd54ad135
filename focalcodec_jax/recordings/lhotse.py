"""Manifests of Lhotse (https://lhotse.readthedocs.io): recordings, and cuts of one recording."""

from collections.abc import Mapping
from typing import Any

from focalcodec_jax.config import SAMPLE_RATE_HZ
from focalcodec_jax.recordings.recording import Recording, legible, printable

SUPERVISION_KEYS = ("text", "speaker", "language", "gender")
CUTS = ("MonoCut", "MultiCut")


def is_lhotse(row: Mapping[str, Any]) -> bool:
    """Whether a row of a manifest is a recording or a cut in the format of Lhotse."""
    return "sources" in row or str(row.get("type")).endswith("Cut")


def recording(row: Mapping[str, Any], where: str) -> Recording:
    """The recording that a row of a Lhotse manifest describes. If the row is invalid, the recording has a `problem`.

    Args:
        row: the row.
        where: name of the row in error messages.
    """
    id_ = printable(str(row.get("id", where)))
    try:
        return _recording(row, id_)
    except ValueError as error:
        return Recording(id_, where, problem=f"{where}: {error}")
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        problem = f"{where} is not a valid recording or cut of Lhotse ({type(error).__name__} {error})"
        return Recording(id_, where, problem=problem)


def _recording(row: Mapping[str, Any], id_: str) -> Recording:
    is_cut = "type" in row
    if is_cut and row["type"] not in CUTS:
        raise ValueError(f"a {row['type']} is not a part of one recording; give a {' or '.join(CUTS)}")
    whole = row["recording"] if is_cut else row
    sources = whole["sources"]
    channel = row.get("channel")
    if isinstance(channel, int):
        sources = [source for source in sources if channel in source["channels"]]
        if not sources:
            raise ValueError(f"its recording has no channel {channel}")
        channel = sources[0]["channels"].index(channel)
    if len(sources) != 1 or sources[0]["type"] not in ("file", "url"):
        kinds = ", ".join(source["type"] for source in sources)
        raise ValueError(f"its audio would come from {kinds}; give one file or URL")
    duration = float(row["duration"])
    part: dict[str, Any] = {"start": float(row["start"]), "duration": duration} if is_cut else {}
    samples = round(duration * SAMPLE_RATE_HZ)
    columns = {} if not isinstance(row.get("custom"), dict) else dict(row["custom"])
    if len(supervisions := row.get("supervisions") or []) == 1:
        columns |= {key: supervisions[0][key] for key in SUPERVISION_KEYS if supervisions[0].get(key) is not None}
    mono = channel if isinstance(channel, int) else None
    return Recording(id_, sources[0]["source"], samples=samples, channel=mono, columns=legible(columns), **part)
