"""Worker processes that read recordings, and the windows of long recordings."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.training import recordings

from focalcodec_jax.config import PRESETS
from focalcodec_jax.recordings.readers import Job, Readers, Windows, codec_windows
from focalcodec_jax.recordings.recording import Recording


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return recordings(tmp_path_factory.mktemp("readers") / "speech", 4)


def test_a_reader_that_dies_loses_only_its_recording(folder: Path):
    """A segmentation fault in an audio library ends a worker in the same way."""
    good = [Recording(f"u{n}", f"{folder}/utterance-0{n}.flac") for n in (1, 2)]
    deadly = Deadly("deadly", "deadly.wav")
    jobs = [Job(index, recording) for index, recording in enumerate([good[0], deadly, good[1]])]
    pieces = sorted(Readers(1, Windows(60, 4)).pieces(jobs), key=lambda piece: piece.index)
    assert [piece.sig is not None for piece in pieces] == [True, False, True]
    assert "ended the process that read it" in str(pieces[1].problem)


def test_readers_that_die_leave_no_processes(folder: Path):
    """Workers die while others read windows, and while the main process is busy."""
    jobs = [Job(n, Recording(f"u{n}", f"{folder}/utterance-01.flac", samples=60 * 16_000)) for n in range(40)]
    for n in (3, 20):
        jobs[n] = Job(n, Deadly("deadly", "deadly.wav", samples=60 * 16_000))
    found = Counter()
    for piece in Readers(3, Windows(2, 0)).pieces(jobs):
        assert (piece.sig is None) == (piece.index in (3, 20)), piece.problem
        found[piece.index] += 1
        time.sleep(0.01)
    assert found == {n: 1 if n in (3, 20) else piece_count(folder / "utterance-01.flac") for n in range(40)}
    deadline = time.monotonic() + 30
    while multiprocessing.active_children():
        assert time.monotonic() < deadline, "worker processes stay"
        time.sleep(0.1)


def piece_count(path: Path) -> int:
    return Windows(2, 0).count(soundfile.info(path).duration)


class Deadly(Recording):
    """A recording that kills the process that reads it."""

    @property
    def source(self) -> str:
        if os.getpid() != MAIN:
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.path


MAIN = int(os.environ.setdefault("TEST_READERS_MAIN", str(os.getpid())))


@pytest.mark.parametrize("name", ["focalcodec_12_5hz", "focalcodec_50hz_4k_causal"])
def test_windows_begin_where_tokens_and_chunks_do(name: str):
    config = PRESETS[name]
    found = codec_windows(config, 59, 3)
    assert (found.seconds, found.context) == (60, 4)
    assert found.hop * config.token_rate_hz % 1 == 0


def test_windows_cover_a_recording_once():
    windows = Windows(60, 4)
    for seconds in (1, 60, 60.5, 61, 112, 112.5, 7200.25):
        count = windows.count(seconds)
        values = np.arange(int(seconds * 50))
        pieces = [
            windows.kept(values[n * windows.hop * 50 :][: windows.seconds * 50], n, count, 50) for n in range(count)
        ]
        np.testing.assert_array_equal(np.concatenate(pieces), values)
    assert windows.count(60) == 1 < windows.count(60.1)
