"""Metrics: against naive oracles, outside tools and published vectors; undefined is NaN."""

import json
import math
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pesq
import pystoi
import pytest
import soundfile

from eval import bsseval, metrics
from eval.metrics import METRICS
from eval.ssnr import frame_snrs_db
from speech.data import corpus
from tests.golden import make_metrics
from tests.reference import metrics_oracle as oracle

GOLDEN = Path(__file__).parent / "golden"
PAIRS = {name: m for name, m in METRICS.items() if not m.needs_noisy}


@pytest.fixture(scope="module")
def golden():
    pairs = json.loads((GOLDEN / "metrics.json").read_text())["pairs"]
    mixtures = {name: (clean, noisy) for name, clean, noisy in make_metrics.mixtures()}
    assert [len(mixtures[pair["name"]][0]) for pair in pairs] == [p["num_samples"] for p in pairs]
    return [(mixtures[pair["name"]], pair) for pair in pairs]


@pytest.fixture(scope="module")
def pair():
    plan = corpus.plan_mixtures(
        corpus.bundled_speech("TEST")[:1], corpus.bundled_noise("TEST")[:1], [5.0]
    )[0]
    mixture = corpus.render(plan)
    return mixture.clean.astype(float), mixture.noisy.astype(float)


def call(metric, clean, estimate):
    return metric(clean, estimate, estimate) if metric.needs_noisy else metric(clean, estimate)


def test_sdr_is_that_of_mir_eval_on_20_real_pairs(golden):
    assert len(golden) == 20
    for (clean, noisy), expected in golden:
        assert metrics.sdr(clean, noisy).value == pytest.approx(expected["sdr"], abs=1e-6)
        assert metrics.si_sdr(clean, noisy).value == pytest.approx(expected["si_sdr"], abs=1e-6)


@pytest.mark.parametrize("name", ["pesq_wb", "pesq_nb", "stoi", "estoi"])
def test_packages_still_give_the_recorded_scores(golden, name):
    """Another version of a metric package with other scores is noticed here."""
    for (clean, noisy), expected in golden[::7]:
        assert METRICS[name](clean, noisy).value == pytest.approx(expected[name], rel=1e-4)


def test_mir_eval_itself_agrees_also_where_it_is_hard(pair):
    separation = pytest.importorskip("mir_eval.separation")
    clean, noisy = pair
    rng = np.random.default_rng(1)
    hard = {
        "noisy": (clean, noisy),
        "filtered": (clean, np.convolve(clean, rng.standard_normal(100))[: len(clean)]),
        "nearly equal": (clean, clean + 1e-6 * rng.standard_normal(len(clean))),
        "a tone": (np.sin(np.arange(8000) / 9), np.sin(np.arange(8000) / 9) + noisy[:8000]),
        "empty bands": (_low_pass(clean), _low_pass(noisy)),
    }
    for name, (reference, estimate) in hard.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # taken away in mir_eval 0.9
            expected = separation.bss_eval_sources(reference[None], estimate[None], False)[0][0]
        assert bsseval.sdr_db(reference, estimate) == pytest.approx(expected, abs=0.01), name


def _low_pass(signal):
    spectrum = np.fft.rfft(signal)
    spectrum[len(spectrum) // 2 :] = 0
    return np.fft.irfft(spectrum, len(signal))


def test_formulas_against_naive_oracles(rng):
    reference = rng.standard_normal(1030)
    estimate = 0.3 * np.convolve(reference, [1, 0.5, -0.2])[:1030] + rng.standard_normal(1030)
    for taps in (1, 7, 32):
        expected = oracle.sdr_db(reference, estimate, taps)
        assert bsseval.sdr_db(reference, estimate, taps) == pytest.approx(expected, abs=1e-8)
    expected = oracle.si_sdr_db(reference, estimate)
    assert metrics.si_sdr(reference, estimate).value == pytest.approx(expected, abs=1e-9)
    assert bsseval.sdr_db(reference, estimate, 1) == pytest.approx(expected, abs=1e-9)
    expected = oracle.lsd_db(reference, estimate)
    assert metrics.lsd(reference, estimate).value == pytest.approx(expected, abs=1e-9)


def test_segmental_snr_as_published_and_without_gain(rng):
    reference = rng.standard_normal(1500)
    reference[256:512] = 0.0  # infinite: left out of the published form, -10 dB in the other
    estimate = 0.5 * reference + rng.standard_normal(1500)
    noisy = reference + rng.standard_normal(1500)
    values = {signal.ctypes.data: oracle.ssnr_db(reference, signal) for signal in (estimate, noisy)}
    one, other = values[estimate.ctypes.data], values[noisy.ctypes.data]
    assert len(frame_snrs_db(reference, estimate)) == 5
    assert metrics.ssnr(reference, estimate).value == pytest.approx(one, abs=1e-9)
    improvement = metrics.ssnri(reference, estimate, noisy).value
    assert improvement == pytest.approx(one - other, abs=1e-9)
    limited = [
        oracle.ssnr_db(reference, oracle.best_gain(reference, signal) * signal, (-10.0, 35.0))
        for signal in (estimate, noisy)
    ]
    assert metrics.si_ssnr(reference, estimate).value == pytest.approx(limited[0], abs=1e-9)
    improvement = metrics.si_ssnri(reference, estimate, noisy).value
    assert improvement == pytest.approx(limited[0] - limited[1], abs=1e-9)


def test_scores_are_those_of_the_metric_packages(pair):
    clean, noisy = pair
    assert metrics.pesq_wb(clean, noisy).value == pesq.pesq(16000, clean, noisy, "wb")
    assert metrics.pesq_nb(clean, noisy).value == pesq.pesq(16000, clean, noisy, "nb")
    assert metrics.stoi(clean, noisy).value == pystoi.stoi(clean, noisy, 16000)
    expected = pystoi.stoi(clean, noisy, 16000, extended=True)  # it adds a little random noise
    assert metrics.estoi(clean, noisy).value == pytest.approx(expected, abs=1e-9)
    assert {call(metric, clean, noisy).status for metric in METRICS.values()} == {"ok"}


def test_published_vector_of_the_pesq_package():
    folder = os.environ.get("PESQ_AUDIO")
    if folder is None:
        pytest.skip("set PESQ_AUDIO to the folder audio of github.com/ludlows/PESQ")
    expected = json.loads((GOLDEN / "pesq_package.json").read_text())
    clean, noisy = (
        soundfile.read(Path(folder, f"{name}.wav"))[0] for name in ("speech", "speech_bab_0dB")
    )
    for name in ("pesq_wb", "pesq_nb"):
        assert METRICS[name](clean, noisy).value == pytest.approx(expected[name], abs=1e-6)


def test_perfect_copies(pair):
    clean, _ = pair
    assert metrics.pesq_wb(clean, clean).value == pytest.approx(4.644, abs=1e-3)
    assert metrics.stoi(clean, clean).value == pytest.approx(1.0, abs=1e-6)
    assert metrics.lsd(clean, 0.2 * clean).value == pytest.approx(0.0, abs=1e-6)
    assert metrics.si_ssnr(clean, 0.2 * clean).value == pytest.approx(35.0, abs=1e-6)
    for metric in (metrics.sdr, metrics.si_sdr):
        score = metric(clean, 0.2 * clean)
        assert math.isnan(score.value)
        assert "infinite" in score.status
    assert "no frame has a finite SNR" in metrics.ssnr(clean, clean).status


@pytest.mark.parametrize("name", METRICS)
def test_only_the_published_ssnr_depends_on_the_level(name, pair):
    clean, noisy = pair
    half = noisy[: len(noisy) // 2]
    quiet, loud = (
        METRICS[name](clean[: len(half)], gain * half, *[half] * METRICS[name].needs_noisy).value
        for gain in (0.1, 1.0)
    )
    if METRICS[name].at_peak_1:
        assert abs(quiet - loud) > 1
    else:
        assert quiet == pytest.approx(loud, abs=1e-3)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c, n: (np.zeros_like(c), n), "reference is silent"),
        (lambda c, n: (c, np.zeros_like(n)), "estimate is silent"),
        (lambda c, n: (c, np.where(np.arange(len(n)) == 9, np.nan, n)), "estimate holds a NaN"),
        (lambda c, n: (c[:0], n[:0]), "is empty"),
    ],
)
def test_undefined_scores_are_nan_with_a_reason(metric, change, reason, pair):
    score = call(metric, *change(*pair))
    assert math.isnan(score.value)
    assert reason in score.status


@pytest.mark.parametrize("name", [name for name in METRICS if name != "si_sdr"])
def test_too_short_is_undefined(name, pair):
    clean, noisy = (signal[8000:8200] for signal in pair)
    score = call(METRICS[name], clean, noisy)
    assert math.isnan(score.value)
    assert re.match(r"(pesq|stoi|sdr|ssnr|si_ssnr|lsd): \S", score.status)


@pytest.mark.parametrize("name", PAIRS)
def test_unequal_lengths_and_channels_are_an_error(name, pair):
    clean, noisy = pair
    with pytest.raises(ValueError, match="cut them alike"):
        METRICS[name](clean, noisy[:-1])
    with pytest.raises(ValueError, match=r"must be \[num_samples\]"):
        METRICS[name](clean, np.stack([noisy, noisy]))


def test_what_pesq_would_overrun_is_not_given_to_it():
    """Its C code writes beyond its tables at more than 50 utterances."""
    long = np.tile(np.sin(np.arange(16000) / 9), 61)
    assert "longer than 60 s" in metrics.pesq_wb(long, long).status
    rng = np.random.default_rng(0)
    time_s = np.arange(40 * 16000) / 16000
    bursts = (time_s % 0.65 < 0.3) * rng.standard_normal(len(time_s))
    assert "utterances" in metrics.pesq_wb(bursts, bursts).status
    assert metrics.most_utterances(bursts) == 62
    assert metrics.most_utterances(bursts[: 30 * 16000]) < 50
    assert metrics.most_utterances(np.zeros(40 * 16000)) == 0


def test_lengths_are_cut_within_reason():
    one, other = np.arange(5000.0), np.arange(5000.0 + metrics.MAX_LENGTH_DIFFERENCE)
    cut = metrics.cut_alike(one, other)
    assert [len(signal) for signal in cut] == [5000, 5000]
    assert cut[1][0] == 0.0
    with pytest.raises(ValueError, match="5000 and 6025 samples; up to 1024"):
        metrics.cut_alike(one, np.arange(6025.0))


def test_versions_name_what_computes_a_score():
    assert METRICS["stoi"].version.startswith("pystoi 0.")
    assert METRICS["sdr"].version == "eval 1"


def test_published_tables_agree_with_the_rules_of_counting():
    model = json.loads((GOLDEN / "icse_published.json").read_text())
    released = model["released_model_theta_0.65"]
    nonzero = released["convolution_weights"] - (
        released["kernels_at_zero"] * released["kernel_size"]
    )
    percent = 100 * nonzero * math.log2(16) / (32 * released["parameters"])
    expected = model["timit"]["pruned_0.65_quantized_16"]["size_percent"]
    assert percent == pytest.approx(expected, abs=0.01)
    tables = json.loads((GOLDEN / "mnn_published.json").read_text())
    for experiment in ("noise", "gender", "snr"):
        count = len(tables[experiment]["experts"])
        for metric, tolerance in (("sdr", 0.011), ("stoi", 0.00011)):
            for row in tables[experiment][metric].values():
                chance, oracle_value = row[count], row[-1]
                assert chance == pytest.approx(np.mean(row[:count]), abs=tolerance)
                assert oracle_value >= max(row[count + 1 : -1]) - 1e-9
