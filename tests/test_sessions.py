"""Live sessions: what comes out, whatever the blocks; what is refused; what is forgotten."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from speech.modelfile.read import read_model_file
from speech.net.enhancer import DEFAULT_MODEL
from speech.net.plan import plan_of
from speech.net.sessions import IDLE_S, MAX_SESSIONS, SAMPLE_TYPE, Sessions
from speech.net.streaming import Stream
from tests.builders import make_speech


class Clock:
    """Goes only where it is told to."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def plan():
    return plan_of(read_model_file(DEFAULT_MODEL))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_sessions(clock):
    return Sessions(clock)


def data_of(samples):
    return np.asarray(samples).astype(SAMPLE_TYPE).tobytes()


@pytest.mark.parametrize("sizes", [[256], [1], [640, 0, 3, 4001]])
def test_blocks_of_any_size_give_the_stream_of_the_whole(open_sessions, plan, sizes, rng):
    noisy = make_speech(rng, 600 if sizes == [1] else 9000).astype(np.float32)
    session = open_sessions.start(plan, 16000)
    assert session.block_samples == 256 and session.live.latency_s == 512 / 16000
    found, at, number = b"", 0, 0
    while at < len(noisy):
        size = sizes[number % len(sizes)]
        found += session.push(number, data_of(noisy[at : at + size]))
        at, number = at + size, number + 1
    found = np.frombuffer(found, SAMPLE_TYPE)
    assert len(found) > len(noisy) - 512
    stream = Stream(plan)
    whole = np.concatenate([stream.push(noisy), stream.flush()])
    assert_allclose(found, whole[: len(found)], rtol=0, atol=1e-5)


def test_another_rate_is_resampled_there_and_back_in_step(open_sessions, plan, rng):
    noisy = np.repeat(make_speech(rng, 8000), 3).astype(np.float32)
    session = open_sessions.start(plan, 48000)
    assert session.block_samples == 768 and 0.032 < session.live.latency_s < 0.15
    found = b"".join(session.push(n, data_of(noisy[768 * n :][:768])) for n in range(31))
    found = np.frombuffer(found, SAMPLE_TYPE)
    assert 31 * 768 - len(found) <= session.live.latency_s * 48000
    inner = noisy[::3]
    stream = Stream(plan)
    whole = np.concatenate([stream.push(inner), stream.flush()])
    # The shift that fits best is none: what comes back is aligned with what went.
    part = found[6000:18000:3]
    fits = {s: float(part @ whole[2000 + s :][: len(part)]) for s in range(-20, 21)}
    assert max(fits, key=lambda s: fits[s]) == 0


@pytest.mark.parametrize(
    ("number", "data", "words"),
    [
        (2, data_of(np.zeros(4)), "block 2 came, expected block 1: each comes once, in order"),
        (0, data_of(np.zeros(4)), "block 0 came, expected block 1"),
        (1, b"12345", "the block has 5 bytes, expected a multiple of 4"),
        (1, data_of(np.zeros(16001)), "the block has 16,001 samples, expected at most 1 s"),
        (1, data_of([0, np.nan, -np.inf]), "2 of the block's 3 samples are NaN, infinite or"),
        (1, data_of([0, 1e20]), "1 of the block's 2 samples are NaN, infinite or beyond"),
    ],
)
def test_a_block_that_is_refused_leaves_the_signal_where_it_was(
    open_sessions, plan, number, data, words, rng
):
    noisy = make_speech(rng, 2048).astype(np.float32)
    session = open_sessions.start(plan, 16000)
    found = session.push(0, data_of(noisy[:1000]))
    with pytest.raises(ValueError, match=words) as caught:
        session.push(number, data)
    assert "\n" not in str(caught.value)
    found += session.push(1, data_of(noisy[1000:]))
    expected = Stream(plan).push(noisy)
    assert_allclose(np.frombuffer(found, SAMPLE_TYPE), expected, rtol=0, atol=1e-5)


def test_sound_that_is_faster_than_sound_is_refused(open_sessions, plan, clock):
    session = open_sessions.start(plan, 16000)
    second = data_of(np.zeros(16000))
    for number in range(10):
        session.push(number, second)
    with pytest.raises(ValueError, match="faster than sound does, expected 16,000 per second"):
        session.push(10, second)
    for number in range(10, 30):  # as a microphone gives them, for any time
        clock.now += 1
        session.push(number, second)
    for number in range(30, 50):  # a microphone whose clock is fast
        clock.now += 0.999
        session.push(number, second)


@pytest.mark.parametrize("rate_hz", [0, 7999, 192_001])
def test_rates_out_of_range_are_refused(open_sessions, plan, rate_hz):
    with pytest.raises(ValueError, match=f"the rate is {rate_hz} Hz, expected 8,000 to 192,000"):
        open_sessions.start(plan, rate_hz)
    assert open_sessions.num_open == 0


def test_sessions_are_few_and_are_forgotten_when_nothing_comes(open_sessions, plan, clock):
    opened = [open_sessions.start(plan, 16000) for _ in range(MAX_SESSIONS)]
    assert len({session.key for session in opened}) == MAX_SESSIONS
    with pytest.raises(ValueError, match=f"{MAX_SESSIONS} live sessions are open"):
        open_sessions.start(plan, 16000)
    open_sessions.stop(opened[0].key)
    open_sessions.stop("unknown")
    open_sessions.start(plan, 16000)
    clock.now += IDLE_S - 1
    open_sessions.of(opened[1].key).push(0, b"")
    clock.now += 2
    open_sessions.sweep()
    assert open_sessions.num_open == 1 and open_sessions.of(opened[1].key) is opened[1]
    for key in (opened[0].key, opened[2].key, ""):
        with pytest.raises(ValueError, match="no such live session"):
            open_sessions.of(key)


def test_a_session_takes_no_more_memory_with_time(open_sessions, plan, clock):
    import tracemalloc

    session = open_sessions.start(plan, 16000)
    second = data_of(np.zeros(16000))

    def run(numbers):
        for number in numbers:
            clock.now += 1
            session.push(number, second)

    run(range(5))
    tracemalloc.start()
    run(range(5, 10))
    before = tracemalloc.get_traced_memory()[0]
    run(range(10, 50))
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 20_000  # a second of samples has 64,000 bytes
