"""Scoring: the paper's equations, what must not change a choice, and segments."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mnn.arbiter import Arbiter, fitting_gain
from mnn.dae import Autoencoder
from mnn.expert_files import Place, open_expert
from mnn.scoring import (
    SCORINGS,
    costs,
    joined,
    needs_of,
    pick,
    rebuilt_difference,
    segment_bounds,
    segment_sums,
    soft_weights,
)
from speech.sound import blocks
from speech.sound.stft import DEFAULT, Synthesis, istft, stft
from tests.builders import make_speech
from tests.mnn_files import write_dae, write_fcn, write_mask
from tests.reference import mnn_scoring_oracle as oracle

HOP = 256


@pytest.fixture(scope="module")
def dae(tmp_path_factory):
    return Autoencoder(write_dae(tmp_path_factory.mktemp("dae") / "dae.h5"))


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    low = np.where(np.arange(513) < 200, 3.0, -3.0)
    files = [
        write_mask(folder / "low.h5", low, spread=0.5, seed=1),
        write_mask(folder / "flat.h5", 0.3, context=1, spread=0.5, seed=2),
        write_fcn(folder / "smooth.icse"),
    ]
    return [open_expert(file) for file in files]


@pytest.fixture
def noisy(rng):
    return (make_speech(rng, 12345) + 0.05 * rng.standard_normal(12345)).astype(np.float32)


def judged(dae, experts, noisy, metric="ae", scoring="paper", **options):
    fit = scoring != "paper"
    arbiter = Arbiter(dae, needs_of(metric, scoring), fit=fit, **options)
    hearings = arbiter.hear(noisy, experts)
    bounds = segment_bounds(len(noisy), None)
    sums = [segment_sums(hearing.statistics, bounds, HOP) for hearing in hearings]
    scores, cost = costs(sums, metric, scoring)
    return scores[:, 0], cost[:, 0], hearings


@pytest.mark.parametrize("context", [3, 1])
def test_paper_scores_are_those_of_the_naive_equations(tmp_path, experts, noisy, context):
    dae = Autoencoder(write_dae(tmp_path / f"{context}.h5", context=context))
    ae, _, hearings = judged(dae, experts, noisy, "ae")
    snr, _, _ = judged(dae, experts, noisy, "snr")
    mixture = noisy.astype(np.float64)
    for place, hearing in enumerate(hearings):
        if hearing.expert.is_spectral:
            spectra = oracle.spectra(mixture)
            scale = np.sqrt(np.mean(mixture**2)) * np.sqrt(np.sum(oracle.WINDOW**2))
            mask = hearing.expert._run(
                oracle.with_neighbours(
                    np.abs(spectra) / scale, hearing.expert.conventions.context
                ).astype(np.float32)
            )
            spectra = mask.astype(np.float64) * spectra
        else:
            spectra = oracle.spectra(hearing.signal.astype(np.float64))
        expected = oracle.scores(spectra, mixture, dae.file.layers, context)
        assert_allclose(ae[place], expected[0], rtol=1e-4, atol=0)
        assert_allclose(snr[place], expected[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("metric", ["ae", "snr"])
def test_order_and_gain_change_nothing(dae, experts, noisy, metric, scoring):
    scores, cost, _ = judged(dae, experts, noisy, metric, scoring)
    turned, turned_cost, _ = judged(dae, experts[::-1], noisy, metric, scoring)
    assert_array_equal(scores, turned[::-1])
    keys = [(e.name, e.sha256) for e in experts]
    best = keys[pick(cost[:, None], keys)[0]]
    assert best == keys[::-1][pick(turned_cost[:, None], keys[::-1])[0]]
    for gain in (1e-3, 0.5, 30.0):
        louder, _, _ = judged(dae, experts, np.float32(gain) * noisy, metric, scoring)
        assert_allclose(louder, scores, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("scoring", [name for name in SCORINGS if name != "paper"])
@pytest.mark.parametrize("metric", ["ae", "snr"])
def test_silence_is_never_chosen(dae, experts, noisy, tmp_path, metric, scoring):
    """The literal eq. (10) prefers what returns next to nothing."""
    silent = [
        open_expert(write_mask(tmp_path / "almost.h5", -12.0)),
        open_expert(write_mask(tmp_path / "a_zero.h5", -200.0)),
    ]
    pool = [*silent, *experts]
    _, cost, _ = judged(dae, pool, noisy, metric, scoring)
    assert np.argmin(cost) >= 2 and np.all(np.isinf(cost[:2]))
    if metric == "ae":
        _, literal, _ = judged(dae, pool, noisy, metric, "paper")
        assert np.argmin(literal) < 2
    # Alone they are still chosen from.
    _, cost, _ = judged(dae, silent, noisy, metric, scoring)
    assert np.all(np.isfinite(cost))


def test_a_quiet_waveform_expert_is_judged_at_the_level_of_the_speech(dae, tmp_path, noisy):
    pool = [
        open_expert(write_fcn(tmp_path / f"{scale:g}.icse", scale=scale)) for scale in (1.0, 0.02)
    ]
    scores, _, hearings = judged(dae, pool, noisy, "ae", "voiced")
    assert_allclose(scores[0], scores[1], rtol=0.05, atol=0)
    for hearing in hearings:
        assert fitting_gain(noisy, hearing.signal) == pytest.approx(1, abs=1e-4)


def test_turning_an_estimate_down_gains_nothing(dae, tmp_path, noisy):
    """Copies of the input at -6, -14, -20 and -28 dB: the literal form prefers the quietest."""
    levels = (0.5, 0.2, 0.1, 0.04)
    pool = [
        open_expert(write_mask(tmp_path / f"{level:g}.h5", np.log(level / (1 - level))))
        for level in levels
    ]
    _, literal, _ = judged(dae, pool, noisy, "ae", "paper")
    assert np.all(np.diff(literal) < 0)
    _, cost, _ = judged(dae, pool, noisy, "ae", "voiced")
    assert_allclose(cost, cost[0], rtol=0.05, atol=0)


def test_dropout_draws_are_seeded_and_alike_for_all(dae, experts, noisy):
    plain, _, _ = judged(dae, experts, noisy)
    one, _, _ = judged(dae, experts, noisy, num_draws=3, seed=1)
    again, _, _ = judged(dae, experts[::-1], noisy, num_draws=3, seed=1)
    other, _, _ = judged(dae, experts, noisy, num_draws=3, seed=2)
    assert_array_equal(one, again[::-1])
    assert np.all(one != other) and np.all(one != plain)
    single = [judged(dae, experts, noisy, num_draws=1, seed=seed)[0] for seed in range(20)]
    many, _, _ = judged(dae, experts, noisy, num_draws=20, seed=3)
    assert_allclose(many, np.mean(single, axis=0), rtol=0.2, atol=0)
    drawn, _, _ = judged(dae, experts, noisy, "snr", num_draws=2, seed=1)
    assert np.all(np.isfinite(drawn))


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("metric", ["ae", "snr"])
def test_silent_input_has_finite_costs(dae, experts, metric, scoring):
    scores, cost, hearings = judged(dae, experts, np.zeros(5000), metric, scoring)
    assert np.all(np.isfinite(scores)) and np.all(np.isfinite(cost))
    assert not any(hearing.signal.any() for hearing in hearings)


@pytest.mark.parametrize("metric", ["ae", "snr"])
def test_blocks_are_exact(dae, experts, noisy, monkeypatch, metric):
    whole, _, hearings = judged(dae, experts, noisy, metric, "voiced")
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", 7)
    parts, _, in_parts = judged(dae, experts, noisy, metric, "voiced")
    assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)
    for one, other in zip(hearings, in_parts, strict=True):
        assert_allclose(other.signal, one.signal, rtol=0, atol=1e-6)
        for name, values in one.statistics.frames.items():
            assert_allclose(other.statistics.frames[name], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_samples", [1, 255, 256, 257, 1024, 5000])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_block_transforms_are_the_whole_ones(rng, num_samples, size):
    signal = rng.standard_normal(num_samples)
    expected = stft(signal)
    synthesis, parts = Synthesis(num_samples, DEFAULT), []
    for start, stop in blocks.frame_blocks(len(expected), size):
        found = blocks.stft_frames(signal, start, stop, DEFAULT)
        assert_allclose(found, expected[start:stop], rtol=0, atol=1e-12)
        parts.append(synthesis.add(0.5 * found))
    whole = istft(0.5 * expected, num_samples)
    assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-12)


def test_the_phase_of_next_to_nothing_is_finite():
    spectra = np.array([[0, 1e-44j, 1e-38, 3 + 4j]], np.complex64)
    frames = np.abs(spectra) / 10
    found = rebuilt_difference(spectra, frames, np.zeros_like(frames), 10.0)
    assert np.all(np.isfinite(found)) and found.dtype == np.complex64
    assert_allclose(found[0, 3], 3 + 4j, rtol=1e-6)
    found = rebuilt_difference(spectra, frames, frames + np.float32(0.1), 10.0)
    assert_allclose(np.abs(found), 1, rtol=1e-5)


def test_ties_go_by_name_and_hash():
    cost = np.array([[1.0, 2.0], [1.0, 1.0], [3.0, 1.0]])
    assert pick(cost, [("b", "1"), ("a", "2"), ("a", "1")]).tolist() == [1, 2]


def test_soft_weights():
    cost = np.array([[1.0, 0.0, np.inf], [2.0, 1.0, np.inf], [np.inf, 0.0, np.inf]])
    weights = soft_weights(cost, power=2.0)
    assert_allclose(weights, [[0.8, 0.5, 1 / 3], [0.2, 0, 1 / 3], [0, 0.5, 1 / 3]], rtol=1e-12)


@pytest.mark.parametrize(
    ("num_samples", "segment", "expected"),
    [
        (100, None, [0, 100]),
        (100, 200, [0, 100]),
        (100, 40, [0, 40, 80, 100]),
        (95, 40, [0, 40, 95]),
        (1, 40, [0, 1]),
    ],
)
def test_segments_cover_the_signal(num_samples, segment, expected):
    assert segment_bounds(num_samples, segment).tolist() == expected


def test_segment_sums_add_up_to_the_whole(dae, experts, noisy):
    arbiter = Arbiter(dae, needs_of("snr", "voiced"))
    statistics = arbiter.hear(noisy, experts[:1])[0].statistics
    whole = segment_sums(statistics, segment_bounds(len(noisy), None), HOP)
    parts = segment_sums(statistics, segment_bounds(len(noisy), 3000), HOP)
    assert len(parts["energy"]) == 4
    for name, values in parts.items():
        assert_allclose(values.sum(), whole[name][0], rtol=1e-12)
    assert_allclose(whole["signal"][0], np.sum(statistics.hops["signal"]), rtol=1e-12)


def test_cross_fades_keep_a_common_signal(rng):
    signal = rng.standard_normal(1000).astype(np.float32)
    bounds = np.array([0, 300, 600, 1000])
    weights = np.array([[1.0, 0.0, 0.3], [0.0, 1.0, 0.7]])
    for fade in (0, 1, 100, 5000):
        out = joined([signal, signal], weights, bounds, fade)
        assert_allclose(out, signal, rtol=0, atol=1e-6)
    one, other = np.ones(1000, np.float32), np.zeros(1000, np.float32)
    out = joined([one, other], weights, bounds, 100)
    assert np.all(out[:250] == 1) and np.all(out[350:550] == 0)
    assert_allclose(out[650:], 0.3, rtol=1e-6)
    assert np.abs(np.diff(out)).max() < 0.011


def test_one_choice_comes_back_as_it_is(rng):
    signal = rng.standard_normal(10).astype(np.float32)
    weights = np.array([[0.0], [1.0]])
    assert_array_equal(joined([None, signal], weights, np.array([0, 10]), 5), signal)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="metric is 'x'; give one of ae, snr"):
        needs_of("x", "paper")
    with pytest.raises(ValueError, match="scoring is 'x'; give one of paper"):
        needs_of("ae", "x")


def test_running_alone_gives_the_same_signals(dae, experts, noisy):
    arbiter = Arbiter(dae, needs_of("ae", "voiced"))
    for one, other in zip(
        arbiter.hear(noisy, experts), arbiter.run(noisy, experts, Place()), strict=True
    ):
        assert_allclose(one.signal, other.signal, rtol=0, atol=1e-6)
