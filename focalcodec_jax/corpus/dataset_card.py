"""The description of a finished token data set: `dataset_info.json`, `failures.jsonl` and a dataset card."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from focalcodec_jax.corpus.journal import ShardEntry
from focalcodec_jax.files import Folder
from focalcodec_jax.tokens.formats.base import FAILURES, INFO, TokenFormat
from focalcodec_jax.version import __version__

CARD = "README.md"


def totals(entries: Sequence[ShardEntry], codebook_size: int) -> dict[str, Any]:
    """Counts over shards, the number of codes in use, and the entropy of the tokens in bits."""
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


def describe(folder: Folder, format: TokenFormat, entries: Sequence[ShardEntry], info: Mapping[str, Any]) -> None:
    """Write the description of a data set whose shards are all finished. `dataset_info.json` is written last."""
    info = {**info, "focalcodec_jax": __version__}
    failures = [failure for entry in entries for failure in entry.failures]
    folder.write(FAILURES, "".join(json.dumps(failure) + "\n" for failure in failures))
    folder.write(CARD, card(info, format))
    folder.write(INFO, json.dumps(info, indent=2) + "\n")


def card(info: Mapping[str, Any], format: TokenFormat) -> str:
    """The text of a dataset card. Its header lists the data files for `datasets` and the Hugging Face Hub."""
    header = load = ""
    if format.datasets_loader is None:
        load = "from focalcodec_jax import packed_sequences  # sequences of equal length, for training\n"
    else:
        pattern = f"data/*.{format.extension}"
        header = f"configs:\n- config_name: default\n  data_files: {pattern}\n"
        load = (
            f'from datasets import load_dataset\n\ndata = load_dataset("{format.datasets_loader}", '
            f'data_files="{pattern}", split="train")\n'
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

This data set contains {info["hours"]:,.2f} hours of speech in {info["recordings"]:,} recordings, encoded as
{info["tokens"]:,} tokens of [FocalCodec](https://github.com/lucadellalib/focalcodec).
The checkpoint is `{info["checkpoint"]}`. The SHA-256 of its weights is {info["checkpoint_sha256"]}.
The tokens were computed by focalcodec_jax {info["focalcodec_jax"]} in {info["dtype"]}.

| | |
|---|---|
| tokens per second | {info["token_rate_hz"]:g} |
| codebook | {info["codebook_size"]:,} codes, {info["codes_used"]:,} of them in use |
| entropy | {info["token_entropy_bits"]:.2f} bits per token |
| recordings that could not be read | {info["failures"]:,} (`{FAILURES}`) |

The column `duration` is in seconds, and `source` is the location of the audio. The other columns are `id`, `tokens` and
the columns of the manifest, if there was one. {window}

```python
{load}```

The program that wrote this card does not know the licence and the languages of the recordings. Please add them.
"""
