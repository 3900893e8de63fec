"""The live mode of python -m speech.demo: blocks over HTTP, and the page with a microphone."""

import contextlib
import http.client
import json
import threading
import time
from urllib.parse import urlencode

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose
from scipy.signal import fftconvolve

from speech.demo import Demo, Server
from speech.net import sessions
from speech.net.enhancer import DEFAULT_MODEL
from speech.net.sessions import MAX_SESSIONS, SAMPLE_TYPE, Session
from speech.net.streaming import Stream
from tests.builders import make_speech, needs_browser, wait_in
from tests.pages import ask, opened


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(Demo(tmp_path_factory.mktemp("demo")), port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    yield
    for key in list(server.demo.sessions._open):
        server.demo.sessions.stop(key)
    assert not list(server.demo._folder.iterdir())  # live sound is written nowhere


def choice_of(server, name):
    """Returns the number of the choice whose label begins with a name."""
    return next(i for i, own in enumerate(server.demo.choices) if own.label.startswith(name))


def start(server, rate=16000, choice=0):
    status, _, body = ask(
        server, "POST", f"/live/start?{urlencode({'choice': choice, 'rate': rate})}"
    )
    return status, json.loads(body)


def push(server, session, block, data, **headers):
    query = urlencode({"session": session, "block": block})
    return ask(server, "POST", f"/live/push?{query}", data, **headers)


def bytes_of(samples):
    return np.asarray(samples).astype(SAMPLE_TYPE).tobytes()


def until(holds):
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail("never became true")


# --------------------------------------------------------------------------------------------
# Without a browser


@pytest.mark.parametrize("sizes", [[256], [1, 1000, 0, 333, 8000]])
def test_blocks_come_back_as_the_stream_of_the_whole(server, sizes, rng):
    noisy = make_speech(rng, 20000).astype(np.float32)
    status, session = start(server)
    assert status == 200 and session.keys() == {
        "session", "block_samples", "latency_ms", "network_hz"
    }  # fmt: skip
    assert (session["block_samples"], session["latency_ms"], session["network_hz"]) == (
        256, 32.0, 16000
    )  # fmt: skip
    found, at, number = b"", 0, 0
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    with contextlib.closing(connection):
        while at < len(noisy):  # all on one connection, as a browser does
            size = sizes[number % len(sizes)]
            query = urlencode({"session": session["session"], "block": number})
            connection.request("POST", f"/live/push?{query}", bytes_of(noisy[at : at + size]))
            answer = connection.getresponse()
            assert answer.status == 200 and not answer.will_close
            found += answer.read()
            at, number = at + size, number + 1
    found = np.frombuffer(found, SAMPLE_TYPE)
    assert len(found) > len(noisy) - 512
    stream = Stream(DEFAULT_MODEL)
    whole = np.concatenate([stream.push(noisy), stream.flush()])
    assert_allclose(found, whole[: len(found)], rtol=0, atol=1e-5)
    assert ask(server, "POST", f"/live/stop?session={session['session']}")[0] == 200
    status, _, body = push(server, session["session"], number, b"")
    assert status == 400 and "no such live session" in json.loads(body)["error"]


def test_models_that_cannot_stream_are_refused_with_the_reason(server):
    for name, reason in [
        ("fcn.h5", "fcn.h5: is of the kind 'waveform', expected 'complex_mask': only a causal"),
        ("the best of a pool", "a pool listens to the whole clip before it picks an expert"),
    ]:
        choice = choice_of(server, name)
        status, answer = start(server, choice=choice)
        assert status == 400 and answer["error"].startswith(reason)
        status, _, body = ask(server, "GET", f"/live/offer?choice={choice}")
        assert status == 200 and json.loads(body) == {"refused": answer["error"]}
    status, _, body = ask(server, "GET", "/live/offer?choice=0")
    assert status == 200 and json.loads(body) == {"refused": ""}
    assert ask(server, "GET", "/live/offer?choice=99")[0] == 404
    assert server.demo.sessions.num_open == 0


@pytest.mark.parametrize(
    ("path", "data", "headers", "status", "words"),
    [
        ("push?session=KEY&block=1", b"", {}, 400, "block 1 came, expected block 0"),
        ("push?session=KEY&block=-1", b"", {}, 400, "block is '-1', expected a whole number"),
        ("push?session=KEY", b"", {}, 400, "block is '', expected a whole number"),
        ("push?session=KEY&block=0", b"12345", {}, 400, "5 bytes, expected a multiple of 4"),
        ("push?session=KEY&block=0", bytes(4 * 16001), {}, 400, "16,001 samples, expected at most"),
        ("push?session=KEY&block=0", bytes_of([np.nan]), {}, 400, "1 of the block's 1 samples are"),
        ("push?session=KEY&block=0", b"", {"Content-Length": "768001"}, 413, "0.768 MB of a block"),
        ("push?session=KEY&block=0", iter([b"x"]), {}, 411, "the length is missing"),
        ("push?session=nobody&block=0", b"", {}, 400, "there is no such live session"),
        ("push?block=0", b"", {}, 400, "there is no such live session"),
        ("push?session=KEY&block=0", b"", {"Host": "evil.example"}, 403, "another site asks"),
        ("push?session=KEY&block=0", b"", {"Origin": "http://evil.example"}, 403, "another site"),
        ("start?choice=0&rate=16000", b"", {"Origin": "null"}, 403, "another site asks"),
        ("stop?session=KEY", b"", {"Origin": "http://evil.example"}, 403, "another site asks"),
        ("start?choice=0&rate=1000", b"", {}, 400, "the rate is 1000 Hz, expected 8,000 to"),
        ("start?choice=0&rate=1e4", b"", {}, 400, "rate is '1e4', expected a whole number"),
        ("start?choice=0", b"", {}, 400, "rate is '', expected a whole number"),
        ("start?choice=99&rate=16000", b"", {}, 404, "there is no such choice"),
        ("sing?choice=0", b"", {}, 404, "there is no such choice"),
    ],
)
def test_what_is_refused_is_one_line_and_changes_nothing(
    server, path, data, headers, status, words, rng
):
    key = start(server)[1]["session"]
    found_status, answered, body = ask(
        server, "POST", f"/live/{path.replace('KEY', key)}", data, **headers
    )
    assert found_status == status and answered["Content-Type"] == "application/json"
    error = json.loads(body)["error"]
    assert words in error and "\n" not in error
    assert server.demo.sessions.num_open == 1
    noisy = make_speech(rng, 2000).astype(np.float32)
    status, _, body = push(server, key, 0, bytes_of(noisy))
    assert status == 200
    expected = Stream(DEFAULT_MODEL).push(noisy)
    assert_allclose(np.frombuffer(body, SAMPLE_TYPE), expected, rtol=0, atol=1e-5)


def test_a_page_that_goes_within_a_block_loses_only_its_own(server):
    keys = [start(server)[1]["session"] for _ in range(2)]
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    connection.putrequest("POST", f"/live/push?session={keys[0]}&block=0")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"only this")
    connection.close()
    assert push(server, keys[1], 0, bytes(1000))[0] == 200
    assert push(server, keys[0], 0, bytes(1000))[0] == 200  # of which nothing had come


def test_sessions_are_few_and_end_by_themselves(server, monkeypatch):
    for _ in range(MAX_SESSIONS):
        assert start(server)[0] == 200
    status, answer = start(server)
    assert status == 400 and answer["error"].startswith(f"{MAX_SESSIONS} live sessions are open")
    monkeypatch.setattr(sessions, "IDLE_S", 0.2)
    until(lambda: server.demo.sessions.num_open == 0)  # nobody asks for anything meanwhile


# --------------------------------------------------------------------------------------------
# A real browser with a microphone


@pytest.fixture
def heard_by_server(monkeypatch):
    """Returns what sessions take and give, as [(noisy, enhanced)] of their blocks."""
    seen = []

    def listened(own, number, data, push=Session.push):
        found = push(own, number, data)
        seen.append((np.frombuffer(data, SAMPLE_TYPE), np.frombuffer(found, SAMPLE_TYPE)))
        return found

    monkeypatch.setattr(Session, "push", listened)
    return seen


@pytest.fixture(scope="module")
def microphone(server, tmp_path_factory):
    path = tmp_path_factory.mktemp("microphone") / "noisy.wav"
    path.write_bytes(server.demo.clip("typing"))
    return path


#: Keeps the last 1.6 s that are shown, and what goes to the loudspeaker.
LISTEN = """() => {
  window.parts = [];
  const before = played;
  played = (own, data) => {
    parts.push([data.noisy, data.enhanced]);
    parts.splice(0, parts.length - 100);
    before(own, data);
  };
  window.ear = new AnalyserNode(live.context, { fftSize: 16384 });
  live.gain.connect(ear);
}"""
#: In units of 1e-5: of the last second that was heard the beginning, and what was shown.
HEARD = """() => {
  const sound = new Float32Array(2048);
  ear.getFloatTimeDomainData(sound);
  const signals = [sound, ...[0, 1].map((i) => parts.flatMap((part) => [...part[i]]))];
  return signals.map((signal) => Array.from(signal, (x) => Math.round(1e5 * x)));
}"""


def misfits(part, whole):
    """Returns the squared differences between a part and each place of the whole, summed."""
    fits = fftconvolve(whole, part[::-1], "valid")
    energies = fftconvolve(np.square(whole), np.ones(len(part)), "valid")
    return energies - 2 * fits + np.square(part).sum()


def hears(tab, which):
    """Waits until an eighth of a second of sound is one of the signals, sample by sample."""
    for _ in range(20):
        tab.wait_for_timeout(1200)
        part, *shown = (1e-5 * np.array(own) for own in tab.evaluate(HEARD))
        if len(shown[0]) == 25600:
            place = int(np.argmin(misfits(part, shown[which])))
            differences = [np.abs(own[place : place + len(part)] - part).max() for own in shown]
            if differences[which] < 1e-4 and differences[1 - which] > 0.01:
                return
    pytest.fail(f"it is not signal {which} that is heard")


@needs_browser
def test_a_microphone_goes_through_the_network_and_back(server, microphone, heard_by_server):
    pytest.importorskip("playwright")
    with opened(server, microphone, permissions=["microphone"]) as (tab, troubles):
        wait_in(tab, "document.querySelectorAll('#choice option').length > 3")
        assert not tab.is_visible("#live-view")
        tab.focus("#live-go")
        tab.keyboard.press("Enter")
        wait_in(tab, "live && live.facts && live.facts.played > 8000")
        assert tab.inner_text("#live-note").startswith("Live. To hear it, put on headphones")
        assert tab.evaluate("live.gain.gain.value") == 0
        tab.check("#live-heard")
        tab.evaluate(LISTEN)
        assert tab.inner_text("#live-note") == "Live."
        hears(tab, 1)
        tab.focus("#live-go")
        tab.keyboard.press("b")
        assert tab.is_checked("[name=heard][value=before]")
        hears(tab, 0)
        tab.check("[name=heard][value=after]")
        hears(tab, 1)

        # Figures, levels and pictures.
        latency_ms = float(tab.inner_text("#live-latency").removesuffix(" ms"))
        assert latency_ms > 32
        assert tab.inner_text("#live-network") == "32 ms"
        assert float(tab.inner_text("#live-trip").removesuffix(" ms")) > 0
        assert int(tab.inner_text("#live-underruns")) <= tab.evaluate("live.facts.underruns")
        for name in ("before", "after"):
            wait_in(tab, f"document.querySelector('#live-{name} meter').value > -60")
        drawn = [
            tab.evaluate(
                f"(() => {{ const c = document.querySelector('#live-{name} canvas');"
                "const image = c.getContext('2d').getImageData(c.width - 100, 0, 100, c.height);"
                "return new Set(new Uint32Array(image.data.buffer)).size; })()"
            )
            for name in ("before", "after")
        ]
        assert min(drawn) > 100  # colours
        assert server.demo.sessions.num_open == 1
        assert not troubles

        # The page goes, and its session with it, long before it would be forgotten.
        tab.goto("about:blank")
        until(lambda: server.demo.sessions.num_open == 0)

    # What the server heard is the microphone; what it gave is the stream of that.
    noisy, enhanced = (np.concatenate(parts) for parts in zip(*heard_by_server, strict=True))
    stream = Stream(DEFAULT_MODEL)
    assert_allclose(enhanced, stream.push(noisy)[: len(enhanced)], rtol=0, atol=1e-5)
    clip, _ = soundfile.read(microphone, dtype="float32")
    parts = clip[: len(clip) // 4000 * 4000].reshape(-1, 4000)
    assert any(misfits(part, noisy).min() < 0.1 * np.square(part).sum() for part in parts)


@needs_browser
def test_a_model_that_cannot_stream_is_told_in_the_page(server, microphone):
    pytest.importorskip("playwright")
    with opened(server, microphone, permissions=["microphone"]) as (tab, troubles):
        wait_in(tab, "document.querySelectorAll('#choice option').length > 3")
        tab.click("#live-go")
        wait_in(tab, "live && live.facts && live.facts.played > 4000")
        tab.select_option("#choice", str(choice_of(server, "fcn.h5")))
        wait_in(tab, "!document.querySelector('#live-error').hidden")
        assert tab.inner_text("#live-error").startswith("fcn.h5: is of the kind 'waveform'")
        assert tab.is_disabled("#live-go") and tab.evaluate("live") is None
        until(lambda: server.demo.sessions.num_open == 0)
        assert not troubles
        tab.select_option("#choice", "0")
        wait_in(tab, "!document.querySelector('#live-go').disabled")
        assert not tab.is_visible("#live-error")

        # A session that the server has forgotten ends with its reason, and starts anew.
        tab.click("#live-go")
        wait_in(tab, "live && live.facts && live.facts.played > 4000")
        server.demo.sessions.stop(next(iter(server.demo.sessions._open)))
        wait_in(tab, "live === null")
        assert "no such live session" in tab.inner_text("#live-error")
        tab.click("#live-go")
        wait_in(tab, "live && live.facts && live.facts.played > 4000")
        assert not tab.is_visible("#live-error")
        tab.click("#live-go")
        until(lambda: server.demo.sessions.num_open == 0)
        assert tab.inner_text("#live-note") == "Stopped."


#: As browsers do that take a microphone only at its own rate.
ONLY_OWN_RATE = """
const Plain = AudioContext;
window.AudioContext = class extends Plain {
  constructor(options) {
    if (options.sampleRate) throw new DOMException("another rate", "NotSupportedError");
    super(options);
  }
};
"""


@needs_browser
def test_a_browser_with_a_rate_of_its_own_is_resampled(server, microphone, heard_by_server):
    pytest.importorskip("playwright")
    options = {"permissions": ["microphone"], "viewport": {"width": 390, "height": 800}}
    with opened(server, microphone, ONLY_OWN_RATE, **options) as (tab, troubles):
        wait_in(tab, "document.querySelectorAll('#choice option').length > 3")
        tab.click("#live-go")
        wait_in(tab, "live && live.facts && live.facts.played > live.context.sampleRate")
        rate_hz = tab.evaluate("live.context.sampleRate")
        assert rate_hz > 16000
        wait_in(
            tab, "document.querySelector('#live-network').textContent.includes('with resampling')"
        )
        assert tab.inner_text("#live-network").endswith(f"with resampling from {rate_hz} Hz")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert not troubles
    noisy, enhanced = (np.concatenate(parts) for parts in zip(*heard_by_server, strict=True))
    assert np.abs(enhanced).max() > 0.01 and len(noisy) - len(enhanced) < 0.2 * rate_hz


@needs_browser
def test_a_microphone_that_is_refused_is_told(server):
    pytest.importorskip("playwright")
    script = "navigator.mediaDevices.getUserMedia = async () => { throw new Error('not today'); }"
    with opened(server, before=script) as (tab, troubles):
        wait_in(tab, "document.querySelectorAll('#choice option').length > 3")
        tab.click("#live-go")
        wait_in(tab, "!document.querySelector('#live-error').hidden")
        assert tab.inner_text("#live-error") == "no microphone: not today"
        assert tab.inner_text("#live-go") == "Start live"
        assert server.demo.sessions.num_open == 0 and not troubles


#: Runs live-sound.js by hand, in its own time: a sine as microphone, its negative as enhanced, and
#: a server that answers after so many quanta of 8 ms, posts one after the other as live.js does.
BY_HAND = """async ({ delays, switchAt }) => {
  window.sampleRate = 16000;
  window.AudioWorkletProcessor = class {
    port = { postMessage: (data) => heard(data) };
  };
  window.registerProcessor = (name, made) => { window.Made = made; };
  await new Promise((done) => {
    const script = document.createElement("script");
    script.src = "/live-sound.js";
    script.onload = done;
    document.head.append(script);
  });
  const block = 256;
  const sound = new Made({ processorOptions: { block, after: true } });
  const sine = (first, count) => Float32Array.from({ length: count },
    (_, i) => 0.5 * Math.sin((2 * Math.PI * 100 * (first + i)) / sampleRate));
  let given = 0, travelling = null, answered = 0, quantum = 0;
  const facts = [], output = [];
  window.heard = (data) => {
    if (data.block) given += data.block.length;
    else facts.push([quantum, data.latency, data.underruns, data.noisy[5], data.enhanced[5]]);
  };
  for (; quantum < delays.length; quantum++) {
    if (travelling && quantum >= travelling.at) {
      const count = travelling.upTo - block - answered; // the network keeps a hop
      sound.port.onmessage({ data: { enhanced: sine(answered, count).map((x) => -x) } });
      answered += count;
      travelling = null;
    }
    if (!travelling && given - block > answered) {
      travelling = { at: quantum + delays[quantum], upTo: given };
    }
    if (quantum === switchAt) sound.port.onmessage({ data: { after: false } });
    const out = new Float32Array(128);
    sound.process([[sine(128 * quantum, 128)]], [[out]]);
    output.push(...out.map((x) => 1e8 * x));
  }
  return JSON.stringify([output.map(Math.round), facts]);
}"""


@pytest.fixture
def by_hand(server):
    """Returns what live-sound.js does with answers after so many quanta."""
    pytest.importorskip("playwright")
    with opened(server) as (tab, _):

        def play(delays, switch_at=-1):
            found = tab.evaluate(BY_HAND, {"delays": list(map(int, delays)), "switchAt": switch_at})
            output, facts = json.loads(found)
            return 1e-8 * np.array(output), np.array(facts)

        yield play


#: Of a sine of 100 Hz at half of full scale, and of fades of 8 and 10 ms on top.
STEEPEST = 0.5 * 2 * np.pi * 100 / 16000 + 0.5 / 128 + 1 / 128


@needs_browser
def test_prompt_answers_give_a_short_latency_without_any_break(by_hand, rng):
    output, facts = by_hand(rng.integers(1, 2, 1000))
    _, latencies_s, underruns, noisy, enhanced = facts.T
    assert underruns[-1] == 0 and np.ptp(latencies_s) < 1e-9 and latencies_s[0] < 0.075
    assert_allclose(noisy, -enhanced, rtol=0, atol=1e-7)
    delay = round(latencies_s[0] * 16000)
    sine = 0.5 * np.sin(2 * np.pi * 100 * np.arange(len(output) - delay) / 16000)
    assert_allclose(output[delay + 128 :], -sine[128:], rtol=0, atol=1e-6)
    assert not output[:delay].any() and np.abs(np.diff(output)).max() < STEEPEST


@needs_browser
def test_late_answers_cost_a_pause_and_their_delay_does_not_stay(by_hand):
    delays = np.ones(2000)
    delays[400] = 120  # nearly a second
    output, facts = by_hand(delays)
    quanta, latencies_s, underruns = facts.T[:3]
    assert underruns[-1] == 1 and np.abs(np.diff(output)).max() < STEEPEST
    assert latencies_s[(500 < quanta) & (quanta < 560)].max() > 0.5
    assert latencies_s[quanta > 900].max() < latencies_s[0] + 0.03
    # Where answers are never prompt, more is kept in hand until they are in time; and later less.
    delays = np.ones(3500)
    delays[300:2000:37] = 9
    _, facts = by_hand(delays)
    quanta, latencies_s, underruns = facts.T[:3]
    assert 1 <= underruns[-1] < 5 and underruns[quanta < 1200][-1] == underruns[-1]
    assert latencies_s[quanta > 2500].max() < latencies_s[quanta < 2000].max() - 0.02


@needs_browser
def test_the_switch_does_not_click(by_hand):
    output, _ = by_hand(np.ones(1000), switch_at=600)
    assert np.abs(np.diff(output)).max() < STEEPEST
    assert_allclose(output[600 * 128 - 1600 : 600 * 128], -output[-1600:], rtol=0, atol=1e-6)
