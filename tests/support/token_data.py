"""Token data sets like those of `tokenize`, written independently of it."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RNG = np.random.default_rng(0)
SHARDS = [
    [RNG.integers(0, 8192, n).astype(np.uint16) for n in lengths]
    for lengths in ([3, 6, 2, 5, 6, 4, 1, 40, 7], [], [10] * 20, RNG.integers(1, 30, 30))
]
ROWS = [row.tolist() for shard in SHARDS for row in shard]
Files = dict[str, bytes]


def parquet(number: int, rows: list[np.ndarray]) -> Files:
    table = pa.table({"id": [f"r{n}" for n in range(len(rows))], "tokens": pa.array(rows, pa.list_(pa.uint16()))})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=4)
    return {f"data/tokens-{number:05d}.parquet": buffer.getvalue()}


def jsonl(number: int, rows: list[np.ndarray]) -> Files:
    lines = [json.dumps({"id": f"r{n}", "tokens": row.tolist()}) + "\n" for n, row in enumerate(rows)]
    return {f"data/tokens-{number:05d}.jsonl": "".join(lines).encode()}


def npy(number: int, rows: list[np.ndarray]) -> Files:
    files, lines = {}, []
    for n, row in enumerate(rows):
        np.save(buffer := io.BytesIO(), row)
        files[f"data/{number}/r{n}.npy"] = buffer.getvalue()
        lines.append(json.dumps({"id": f"r{n}", "file": f"data/{number}/r{n}.npy"}) + "\n")
    return files | {f"data/tokens-{number:05d}.jsonl": "".join(lines).encode()}


WRITERS: dict[str, Callable[[int, list[np.ndarray]], Files]] = {"parquet": parquet, "jsonl": jsonl, "npy": npy}


BY_HAND = (*WRITERS, "array_record")
"""Formats that tests write without the package."""


def dataset(folder: str | Path, format: str = "parquet", shards: list[list[np.ndarray]] = SHARDS) -> str:
    """Write a finished data set to a path or URL, and return the path."""
    info = {"format": format, "codebook_size": 8192, "token_rate_hz": 50.0, "shards": len(shards)}
    info["tokens"] = sum(len(row) for rows in shards for row in rows)
    files = {"dataset_info.json": json.dumps(info).encode()}
    for number, rows in enumerate(shards):
        if format == "array_record":
            array_record(Path(folder) / f"data/tokens-{number:05d}.array_record", rows)
        else:
            files |= WRITERS[format](number, rows)
    system, root = fsspec.core.url_to_fs(str(folder))
    for name, content in files.items():
        system.makedirs(f"{root}/{name}".rsplit("/", 1)[0], exist_ok=True)
        system.pipe_file(f"{root}/{name}", content)
    return str(folder)


def array_record(path: Path, rows: list[np.ndarray]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for n, row in enumerate(rows):
        writer.write(json.dumps({"id": f"r{n}", "dtype": "uint16"}).encode() + b"\n" + row.tobytes())
    writer.close()
