"""Token data sets between machines and libraries: an object store on this machine, `datasets`, pandas' kin."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.training import checkpoint, recordings
from typer.testing import CliRunner

from focalcodec_jax import Codec
from focalcodec_jax.cli import app
from focalcodec_jax.recordings import audio

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> str:
    return checkpoint(tmp_path_factory.mktemp("codec"))


@pytest.fixture
def bucket(monkeypatch, tmp_path: Path):
    """An empty bucket on a store of this machine's."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    s3fs = pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("speech")
    yield files
    server.stop()


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_from_an_object_store_and_back_to_it(bucket, codec: str, tmp_path: Path):
    folder = recordings(tmp_path / "in", 20)
    bucket.put(f"{folder}/", "speech/in/", recursive=True)
    arguments = ("-c", codec, "--workers", "1", "--check", "0", "--shard-hours", "0.001")
    for part in ("1/2", "0/2"):
        run("tokenize", "s3://speech/in", "-o", "s3://speech/out", *arguments, "--shard", part)
    names = {name.removeprefix("speech/out/") for name in bucket.find("speech/out")}
    assert {
        "README.md",
        "dataset_info.json",
        "failures.jsonl",
        "journal/plan.json",
        "data/tokens-00000.parquet",
    } <= names
    run("detokenize", "s3://speech/out", "-o", "s3://speech/back", "-c", codec)
    assert len(bucket.glob("speech/back/*.flac")) == 20

    ours = Codec.from_pretrained(codec)
    polars = pytest.importorskip("polars")
    table = polars.read_parquet(
        "s3://speech/out/data/*.parquet",
        storage_options={"aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"], "aws_allow_http": "true"},
    )
    for row in table.sort("id").iter_rows(named=True):
        sig = audio.read(folder / f"{row['id']}.flac")
        np.testing.assert_array_equal(row["tokens"], ours.encode(sig, 16_000)[0])
    assert len(table) == 20


def test_datasets_and_pandas_read_it(codec: str, tmp_path: Path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = recordings(tmp_path / "in", 6)
    (tmp_path / "in/bad.wav").write_bytes(b"no audio")
    out = tmp_path / "out"
    CliRunner().invoke(app, ["tokenize", str(folder), "-o", str(out), "-c", codec, "--workers", "0"])
    by_files = datasets.load_dataset("parquet", data_files=f"{out}/data/*.parquet", split="train")
    by_folder = datasets.load_dataset(str(out), split="train")  # through the card
    for found in (by_files, by_folder):
        assert found.column_names == ["id", "tokens", "duration", "source"]
        assert len(found) == 6
    import pandas

    table = pandas.read_parquet(out / "data")
    assert [list(toks) for toks in table["tokens"]] == list(by_files["tokens"])
