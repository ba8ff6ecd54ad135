"""What a finished token data set says of itself: `dataset_info.json`, `failures.jsonl` and a card."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from focalcodec_jax.corpus.journal import Entry, Journal
from focalcodec_jax.files import Folder
from focalcodec_jax.tokens.formats import FAILURES, INFO, Format
from focalcodec_jax.version import __version__

CARD = "README.md"


def totals(entries: list[Entry], codebook_size: int) -> dict[str, Any]:
    """Counts of a data set, how many codes it uses, and their entropy in bits a token."""
    counts = np.zeros(codebook_size, np.int64)
    for entry in entries:
        counts += np.array(entry.counts, np.int64)
    shares = counts[counts > 0] / max(1, counts.sum())
    return {
        "recordings": sum(entry.recordings for entry in entries),
        "failures": sum(len(entry.failures) for entry in entries),
        "hours": round(sum(entry.seconds for entry in entries) / 3600, 6),
        "tokens": int(counts.sum()),
        "codes_used": int((counts > 0).sum()),
        "token_entropy_bits": round(float(-(shares * np.log2(shares)).sum()), 4),
    }


def describe(folder: Folder, journal: Journal, info: Mapping[str, Any]) -> dict[str, Any]:
    """Write the description of a data set whose shards are all there; `dataset_info.json` last."""
    entries = [journal.entry(shard) for shard in journal.shards]
    found = {**info, **totals(entries, info["codebook_size"]), "shards": len(entries), "focalcodec_jax": __version__}
    failures = [failure for entry in entries for failure in entry.failures]
    folder.write(FAILURES, "".join(json.dumps(failure) + "\n" for failure in failures))
    folder.write(CARD, card(found))
    folder.write(INFO, json.dumps(found, indent=2) + "\n")
    return found


def card(info: Mapping[str, Any]) -> str:
    """A data card, with the header by which `datasets` and the Hugging Face Hub find the shards."""
    files = {Format.parquet: "parquet", Format.jsonl: "jsonl"}.get(Format(info["format"]))
    header = f"configs:\n- config_name: default\n  data_files: data/*.{files}\n" if files else ""
    load = (
        f'from datasets import load_dataset\n\ndata = load_dataset("{"json" if files == "jsonl" else files}", '
        f'data_files="data/*.{files}", split="train")\n'
        if files
        else "from focalcodec_jax.packing import packed_sequences  # sequences of one length, for training\n"
    )
    overlap = 2 * info["context_seconds"]
    window = f"Recordings longer than {info['window_seconds']} s were encoded in windows that overlap by {overlap} s."
    return f"""---
tags:
- speech
- audio-tokens
- focalcodec
{header}---

# Speech tokens

{info["hours"]:,.2f} hours of speech in {info["recordings"]:,} recordings, as {info["tokens"]:,} tokens of
[FocalCodec](https://github.com/lucadellalib/focalcodec), checkpoint `{info["checkpoint"]}`
(SHA-256 of its weights {info["checkpoint_sha256"]}),
made by focalcodec_jax {info["focalcodec_jax"]} in {info["dtype"]}.

| | |
|---|---|
| tokens per second | {info["token_rate_hz"]:g} |
| codebook | {info["codebook_size"]:,} codes, {info["codes_used"]:,} of them in use |
| entropy | {info["token_entropy_bits"]:.2f} bits a token |
| recordings that could not be read | {info["failures"]:,} (`{FAILURES}`) |

Columns: `id`; `tokens`; `duration` in seconds; `source`, where the audio lay; and those of its manifest, if any.
{window}

```python
{load}```

The recordings' licence and languages are not known to the program that wrote this card; please add them.
"""
