"""Batches from other processes: in order, the same, and gone when nobody wants them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_array_equal

from speech.data import corpus
from speech.data.corpus import Utterance
from speech.data.mixtures import MixingConfig, PieceSource
from speech.data.prefetch import prefetched_batches
from tests.builders import is_alive, wait_until

ROOT = Path(__file__).parent.parent
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")


@pytest.fixture(scope="module")
def source():
    config = MixingConfig(room_share=0)
    speech, noises = corpus.bundled_speech("TRAIN")[:6], corpus.bundled_noise("TRAIN")[:2]
    return PieceSource(speech, noises, config, num_samples=4000, batch_size=2)


def children_of(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_for_any_number_of_workers(source, workers):
    made = list(prefetched_batches(source, 2, 13, workers=workers))
    assert len(made) == 11
    for index, batch in enumerate(made, start=2):
        for signal_, expected in zip(batch, source.batch(index), strict=True):
            assert_array_equal(signal_, expected)
            assert signal_.flags.writeable


@needs_proc
def test_worker_ends_with_the_stream(source):
    before = set(children_of(os.getpid()))
    stream = prefetched_batches(source)
    next(stream)
    (worker,) = set(children_of(os.getpid())) - before
    maps = Path(f"/proc/{worker}/maps").read_text()
    assert "tensorflow" not in maps and "numpy" in maps
    stream.close()
    assert not is_alive(worker)


@needs_proc
def test_killed_worker_is_one_line(source):
    before = set(children_of(os.getpid()))
    stream = prefetched_batches(source)
    next(stream)
    (worker,) = set(children_of(os.getpid())) - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="ended with code -9; .*use fewer workers"):
        for _ in range(20):
            next(stream)


@needs_proc
def test_worker_ends_when_its_parent_is_killed():
    script = (
        "from speech.data.corpus import bundled_noise, bundled_speech\n"
        "from speech.data.mixtures import *\n"
        "from speech.data.prefetch import prefetched_batches\n"
        "source = PieceSource(bundled_speech('TRAIN')[:2], bundled_noise('TRAIN')[:1],"
        " MixingConfig(room_share=0), num_samples=4000, batch_size=1)\n"
        "for batch in prefetched_batches(source): print('one', flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        (worker,) = children_of(parent.pid)
        parent.kill()
    assert wait_until(lambda: not is_alive(worker))


def test_error_of_a_worker_arrives(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    speech = [Utterance("a", tmp_path / "a.wav", "a")]
    source = PieceSource(speech, corpus.bundled_noise("TRAIN"), MixingConfig(noise_share=0))
    with pytest.raises(ValueError, match="no usable piece in 20 draws; the last: .*a.wav"):
        next(prefetched_batches(source))


def test_negative_workers(source):
    with pytest.raises(ValueError, match="workers is -1; give 0 or more"):
        next(prefetched_batches(source, workers=-1))
