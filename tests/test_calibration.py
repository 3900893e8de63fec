"""Calibration of a pool: the equation, its file, the command, and what a selector makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose

from eval.metrics import si_sdr
from mnn import calibrate, select
from mnn.arbiter import Arbiter
from mnn.calibration import (
    MIN_FILES,
    Calibrated,
    Calibration,
    HeldOut,
    fitted,
    held_out,
    read_calibration,
)
from mnn.dae import Autoencoder
from mnn.expert_files import folder_expert
from mnn.pool import open_pool
from mnn.ranker import Ranker, distances, distances_between
from mnn.scoring import needs_of
from mnn.selector import Selector
from speech.base.files import sha256_of
from tests.builders import make_speech
from tests.mnn_files import write_dae, write_mask, write_ranker

SHA = "0" * 64


@pytest.fixture
def ranker(tmp_path):
    return Ranker(write_ranker(tmp_path / "ranker.icse"))


@pytest.fixture
def folders(tmp_path, rng):
    """Twelve mixtures and their speech, with names that pair them."""
    for number in range(12):
        clean = make_speech(rng, 12000)
        for kind, signal in (
            ("clean", clean),
            ("noisy", clean + 0.03 * rng.standard_normal(12000)),
        ):
            path = tmp_path / kind / f"a{number:02d}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, signal, 16000)
    return tmp_path / "noisy", tmp_path / "clean"


@pytest.fixture
def pool(tmp_path):
    """An expert that does little harm, and one whose mask is all noise."""
    return [
        write_mask(tmp_path / f"{name}.h5", 1.0, spread=spread)
        for name, spread in (("much", 0.1), ("bit", 30.0))
    ]


def known_pool(offsets, slope, sha256=SHA, num_files=40, weights=()):
    """A calibration of experts by name: offset, or offset and SHA-256; w is 0 unless given."""
    size = (len(offsets) + 2) * (len(offsets) + 1)
    experts = {}
    for place, (name, value) in enumerate(offsets.items()):
        offset, own = value if isinstance(value, tuple) else (value, "")
        row = np.zeros(size) if len(weights) == 0 else weights[place]
        experts[name] = Calibrated(offset, tuple(map(float, row)), own)
    return Calibration(experts, slope, (-2.0,) * size, (0.5,) * size, sha256, num_files)


def drawn_between(rng, num_files, num_experts):
    """Distances between signals as `distances_between` gives them, of no meaning."""
    size = num_experts + 2
    logs = rng.normal(-2.0, 0.5, (num_files, 2, size, size))
    return (logs + logs.swapaxes(2, 3)) / 2 - 13 * np.eye(size)


def test_the_equation_is_found_again(rng):
    """Errors that follow it exactly, but for what the estimates of a file share."""
    offsets = np.array([0.3, -0.2, 0.9])
    costs, between = np.exp(rng.normal(-2.0, 0.3, (4000, 3))), drawn_between(rng, 4000, 3)
    apart = (between[:, 0, 0, 2] - between[:, 0, 0, 2].mean()) / between[:, 0, 0, 2].std()
    logs = offsets + 0.7 * np.log(costs) + np.outer(apart, [0.5, 0.0, 0.0])
    logs += rng.normal(0.0, 1.0, (4000, 1))
    experts = [("a", SHA), ("b", ""), ("c", "")]
    known = fitted(costs, between, -10 / np.log(10) * logs, experts, SHA)
    assert known.slope == pytest.approx(0.7, abs=0.05)
    found = np.array([known.experts[name].offset for name in "abc"])
    assert_allclose(found - found.mean(), offsets - offsets.mean(), atol=0.05)
    assert known.num_files == 4000 and known.experts["a"].sha256 == SHA
    misses = []
    for file in range(200):
        signals, places = (
            [0, 1, 4, 2],
            [2, 0],
        )  # one expert is out, the others come in another order
        own = known.offsets(["c", "a"], between[file][:, signals][:, :, signals])
        found = known.costs(own, costs[file, places, None])
        misses.append(np.log(found[0, 0] / found[1, 0]) - (logs[file, 2] - logs[file, 0]))
    assert np.std(misses) < 0.15 < np.std(logs[:, 2] - logs[:, 0])


def test_what_differs_from_file_to_file_is_learned(rng):
    """The ranker's cost is too small for the expert that is near the mixture."""
    errors = np.exp(rng.normal(-2.0, 0.5, (200, 2)))
    between = drawn_between(rng, 200, 2)
    near = rng.normal(0.0, 1.0, 200)
    between[:, :, 0, 2] += near[:, None]
    between[:, :, 2, 0] += near[:, None]
    costs = errors * np.stack([np.exp(near), np.ones(200)], axis=1)
    known = fitted(costs, between, -10 * np.log10(errors), [("a", ""), ("b", "")], SHA)
    offsets = np.stack([known.offsets(["a", "b"], own) for own in between])
    found = np.stack(
        [known.costs(*row)[:, 0] for row in zip(offsets, costs[..., None], strict=True)]
    )
    assert np.mean(costs.argmin(axis=1) == errors.argmin(axis=1)) < 0.8
    assert np.mean(found.argmin(axis=1) == errors.argmin(axis=1)) > 0.85


def test_an_expert_that_errs_as_the_ranker_does_is_no_longer_preferred(rng):
    """Costs that are too small by a factor, as those of a network with the ranker's layers."""
    errors = np.exp(rng.normal(-2.0, 0.5, (40, 3)))
    costs, between = errors * [0.2, 1.0, 1.0], drawn_between(rng, 40, 3)
    known = fitted(costs, between, -10 * np.log10(errors), [(name, "") for name in "abc"], SHA)
    found = [
        known.costs(known.offsets(list("abc"), own), row[:, None])[:, 0]
        for own, row in zip(between, costs, strict=True)
    ]
    assert np.mean(costs.argmin(axis=1) == errors.argmin(axis=1)) < 0.8
    assert np.mean(np.argmin(found, axis=1) == errors.argmin(axis=1)) > 0.9


def test_what_means_nothing_does_no_harm(rng):
    """The distances are noise and there are few mixtures, but the costs are true."""
    names, losses = list("abcde"), []
    for _ in range(20):
        errors, between = np.exp(rng.normal(-2.0, 0.3, (240, 5))), drawn_between(rng, 240, 5)
        costs = errors * np.exp(rng.normal(0.0, 0.2, errors.shape))
        sdr_db = -10 * np.log10(errors)
        known = fitted(costs[:40], between[:40], sdr_db[:40], [(name, "") for name in names], SHA)
        for own, row, truth in zip(between[40:], costs[40:], sdr_db[40:], strict=True):
            found = known.costs(known.offsets(names, own), row[:, None])[:, 0]
            losses.append(truth[row.argmin()] - truth[found.argmin()])
    assert np.mean(losses) < 0.03


@pytest.mark.parametrize("gap_db", [15.0, 20.0, 40.0, 100.0])
@pytest.mark.parametrize("num_good", [1, 2])
def test_that_an_expert_is_far_worse_is_known(rng, gap_db, num_good):
    """The ranker takes it for better than all others, in every file."""
    sdr_db = rng.normal(12.0, 1.0, (120, num_good + 1))
    sdr_db[:, -1] = sdr_db[:, 0] - gap_db
    costs = 0.1 * np.exp(rng.normal(0.0, 0.1, sdr_db.shape))
    costs[:, -1] *= 0.3
    between = drawn_between(rng, 120, num_good + 1)
    names = [str(number) for number in range(num_good + 1)]
    known = fitted(costs, between, sdr_db, [(name, "") for name in names], SHA)
    picks = [
        known.costs(known.offsets(names, own), row[:, None])[:, 0].argmin()
        for own, row in zip(between, costs, strict=True)
    ]
    assert max(picks) < num_good


def test_no_slope_is_negative(rng):
    """Costs that grow where errors fall say nothing that can be relied on."""
    errors = np.exp(rng.normal(-2.0, 0.5, (60, 3)))
    experts = [("a", ""), ("b", ""), ("c", "")]
    between = drawn_between(rng, 60, 3)
    assert fitted(1e-2 / errors, between, -10 * np.log10(errors), experts, SHA).slope == 0
    known = fitted(errors, between, -10 * np.log10(errors), experts, SHA)
    assert known.slope == pytest.approx(1.0, abs=0.02)


def test_perfect_and_equal_estimates_have_finite_terms():
    between = np.full((MIN_FILES, 2, 4, 4), np.log(1e-6))
    costs, names = np.full((MIN_FILES, 2), 1e-30), ["a", "b"]
    known = fitted(costs, between, np.full((MIN_FILES, 2), np.inf), [("a", ""), ("b", "")], SHA)
    for own in (between[0], 0 * between[0] + 14.0):
        found = known.costs(known.offsets(names, own), costs[0, :, None])
        assert np.isfinite(found).all() and found[0] == pytest.approx(found[1])


def test_what_is_not_determined_stays_small(rng):
    """Two experts whose costs are all but equal, and few mixtures."""
    for _ in range(40):
        sdr_db = rng.normal(10.0, 3.0, (20, 2))
        costs = 0.1 * np.exp(rng.normal(0.0, 0.01, (20, 2)))
        known = fitted(costs, drawn_between(rng, 20, 2), sdr_db, [("a", ""), ("b", "")], SHA)
        assert known.slope < 1


def test_a_calibration_knows_no_other_experts():
    known = known_pool({"a": 0.5, "b": 0.0}, 0.7)
    with pytest.raises(ValueError, match="c is not in the calibration"):
        known.offsets(["a", "c"], np.zeros((2, 4, 4)))


@pytest.mark.parametrize(("num_files", "num_experts"), [(MIN_FILES - 1, 2), (MIN_FILES, 1)])
def test_too_little_says_nothing(num_files, num_experts):
    with pytest.raises(ValueError, match="expected 10 and 2 at least"):
        fitted(
            np.ones((num_files, num_experts)),
            np.zeros((num_files, 2, num_experts + 2, num_experts + 2)),
            np.ones((num_files, num_experts)),
            [(str(n), "") for n in range(num_experts)],
            SHA,
        )


def test_unusual_distances_are_limited(rng):
    """No weight is trusted far from what was measured."""
    known = known_pool({"a": 0.0, "b": 0.0}, 0.7, weights=rng.normal(0.0, 0.1, (2, 12)))
    for far, farther in ((14.0, 1e3), (-13.8, -1e3)):
        found = [known.offsets(["a", "b"], np.full((2, 4, 4), value)) for value in (far, farther)]
        assert_allclose(*found)


def test_distances_between_signals(rng):
    """Low and high bands add up to what `distances` finds, in both directions, for any gain."""
    signals = [rng.standard_normal(300_000).astype("f4") for _ in range(3)]
    signals[1] += 2 * signals[0]
    found = distances_between(signals)
    assert found.shape == (2, 3, 3)
    assert_allclose(found, found.swapaxes(1, 2))
    each = [distances(one, signals, 1.0).sum(axis=1) for one in signals]
    for i in range(3):
        for j in range(i):
            for part, bands in enumerate((slice(0, 20), slice(20, 48))):
                logs = [np.log(each[i][j, bands].sum()), np.log(each[j][i, bands].sum())]
                assert found[part, i, j] == pytest.approx(np.mean(logs), abs=1e-3)
    soft = [np.float32(gain) * own for gain, own in zip((1e-18, 1.0, 1e15), signals, strict=True)]
    assert_allclose(distances_between(soft), found, atol=1e-3)
    assert_allclose(np.einsum("pii->pi", found), np.log(1e-6), atol=0.1)
    silent = distances_between([signals[0], 0 * signals[0], signals[0][::-1].copy()])
    assert np.isnan(silent[:, 1]).all() and np.isnan(silent[:, :, 1]).all()
    assert -14 <= silent[:, 0, 2].min() <= silent[:, 0, 2].max() <= 14


def test_a_file_of_a_stranger(tmp_path):
    known = known_pool({"a": (0.5, SHA), "b": 0.0}, 0.7)
    known.write(tmp_path / "pool.json")
    assert read_calibration(tmp_path / "pool.json") == known
    with pytest.raises(ValueError, match="no such file; make it with"):
        read_calibration(tmp_path / "none.json")
    good = json.loads((tmp_path / "pool.json").read_text())
    for broken in (
        "{",
        "[]",
        json.dumps(good | {"slope": "steep"}),
        json.dumps(good | {"slope": float("nan")}),
        json.dumps(good | {"slope": -0.1}),
        json.dumps(good | {"means": good["means"][1:]}),
        json.dumps(good | {"slope": 20.0}),
        json.dumps(good | {"deviations": [0.0] * 12}),
        json.dumps(good | {"deviations": [5e-324] * 12}),
        json.dumps(good | {"experts": good["experts"] | {"b": {"offset": 0, "weights": [1]}}}),
        json.dumps(
            good | {"experts": good["experts"] | {"b": good["experts"]["a"] | {"offset": 1e9}}}
        ),
        json.dumps(good | {"experts": good["experts"] | {"c": good["experts"]["a"]}}),
        json.dumps(good | {"experts": {}}),
        json.dumps(good | {"num_files": -5}),
        json.dumps({key: value for key, value in good.items() if key != "experts"}),
    ):
        (tmp_path / "bad.json").write_text(broken)
        with pytest.raises(ValueError, match="bad.json"):
            read_calibration(tmp_path / "bad.json")


def test_a_selector_goes_by_it(ranker, pool, tmp_path, noisy):
    """Segments and channels too; silence of an estimate is still no way to win."""
    silent = write_mask(tmp_path / "silent.h5", -40.0)
    experts = [expert for expert in open_pool([*pool, silent])[0] if expert]
    arbiter = Arbiter(Autoencoder(write_dae(tmp_path / "dae.h5")), needs_of("ae", "voiced"))
    channels = [noisy, 0.5 * noisy[::-1].copy()]

    def decided(offsets, weights=(), **options):
        known = {e.name: (o, e.sha256) for e, o in zip(experts, offsets, strict=True)}
        calibration = known_pool(known, 0.6, ranker.file.sha256, weights=weights)
        selector = Selector(arbiter, experts, ranker=ranker, judge="ranker",
                            calibration=calibration, **options)  # fmt: skip
        return selector.choose(channels)[0]

    assert decided([0.0, 9.0, -20.0]).picks == ["much"]
    assert decided([9.0, 0.0, -20.0]).picks == ["bit"]
    assert set(decided([9.0, 0.0, 0.0], segment_seconds=0.2).picks) == {"bit"}
    rough = [write_mask(tmp_path / f"{seed}.h5", 0.0, spread=2.0, seed=seed) for seed in (1, 2)]
    experts = [expert for expert in open_pool([*rough, silent])[0] if expert]
    channels = [noisy, 0 * noisy]  # a silent channel says nothing
    signals = [own.signal for own in arbiter.run(noisy, experts)]
    offsets, weights = np.array([0.1, 0.2, 0.3]), np.linspace(-0.1, 0.1, 60).reshape(3, 20)
    tiles = ranker.errors(noisy, signals)
    between = distances_between([noisy, ranker.reference(noisy, signals), *signals])
    upper = np.triu_indices(5, 1)
    z = np.clip((np.concatenate([part[upper] for part in between]) + 2.0) / 0.5, -5, 5)
    own = offsets + weights @ z
    expected = np.exp(own + 0.6 * np.log(tiles.sum(axis=(1, 2))))
    assert_allclose(decided(offsets, weights).scores, expected, rtol=1e-3)
    channels = [noisy]
    assert_allclose(decided(offsets, weights).scores, expected, rtol=1e-3)
    silence = decided(offsets, segment_seconds=0.2)
    assert silence.costs.shape[0] == 3 and np.isfinite(silence.costs[:2]).all()
    found = decided(offsets, weights, combine="bands")
    expected = np.exp(own[:, None, None] + 0.3 * np.log(tiles + 1e-3 * tiles.mean()))
    assert_allclose(found.tiles, expected, rtol=1e-3)
    channels = [0 * noisy]
    assert decided(offsets).is_silent


def test_who_is_out_or_silent_says_nothing_of_the_others(ranker, tmp_path, noisy, rng):
    """Distances from an estimate that is not there are taken for usual, in one channel or all."""
    paths = [write_mask(tmp_path / f"{name}.h5", 0.0, spread=2.0, seed=seed)
             for seed, name in enumerate("ab")]  # fmt: skip
    folder = tmp_path / "c"
    folder.mkdir()
    soundfile.write(folder / "x.wav", noisy, 16000)
    experts = [*open_pool(paths)[0], folder_expert("c", folder)]
    arbiter = Arbiter(Autoencoder(write_dae(tmp_path / "dae.h5")), needs_of("ae", "voiced"))
    known = {expert.name: (0.1, expert.sha256) for expert in experts}
    calibration = known_pool(known, 0.6, ranker.file.sha256, weights=rng.normal(0, 0.1, (3, 20)))
    selector = Selector(arbiter, experts, ranker=ranker, judge="ranker", calibration=calibration)

    def chosen(samples, channels):
        soundfile.write(folder / "x.wav", samples, 16000)
        return selector.choose(channels, Path("x.wav"))[0]

    out = chosen(np.ones((9, 1)), [noisy])  # of another length
    assert list(out.out) == ["c"]
    signals = [own.signal for own in arbiter.run(noisy, experts[:2])]
    between = distances_between([noisy, ranker.reference(noisy, signals), *signals])
    usual = np.full((2, 5, 5), -2.0)
    usual[:, :4, :4] = between
    assert_allclose(
        calibration.offsets(["a", "b"], between),
        calibration.offsets(["a", "b", "c"], usual)[:2],
    )
    costs = ranker.errors(noisy, signals).sum(axis=(1, 2))
    own = calibration.offsets(["a", "b"], between)
    assert_allclose(out.scores, np.exp(own + 0.6 * np.log(costs)), rtol=1e-3)
    write_mask(tmp_path / "c.h5", -300.0)  # no sound at all
    selector.experts = [*experts[:2], *open_pool([tmp_path / "c.h5"])[0]]
    silent = selector.choose([noisy])[0]
    signals.append(0 * noisy)
    between = distances_between([noisy, ranker.reference(noisy, signals), *signals])
    own = calibration.offsets(["a", "b"], between[:, :4, :4])
    costs = ranker.errors(noisy, signals).sum(axis=(1, 2))[:2]
    assert_allclose(silent.scores[:2], np.exp(own + 0.6 * np.log(costs)), rtol=1e-3)
    assert silent.picks[0] in "ab" and silent.costs[2] == np.inf
    silent = selector.choose([noisy, noisy[::-1].copy()])[0]
    assert silent.picks[0] in "ab" and np.isfinite(silent.scores).all()


def test_a_pool_is_calibrated_and_chosen_from(folders, pool, ranker, tmp_path, capsys):
    noisy, clean = folders
    out = tmp_path / "pool.json"
    words = ["--experts", *pool, "--ranker", ranker.file.path]
    command = [*words, "--noisy", noisy, "--clean", clean, "-o", out]
    assert calibrate.main([str(word) for word in command]) == 0
    told = capsys.readouterr()
    assert "12 mixtures" in told.out and "much" in told.out
    assert "warning: too few mixtures to try the calibration" in told.err
    known = read_calibration(out)
    assert list(known.experts) == ["much", "bit"] and known.ranker_sha256 == ranker.file.sha256
    assert known.experts["much"].offset < known.experts["bit"].offset - 0.1

    chosen, report = tmp_path / "chosen", tmp_path / "report.json"
    command = [*words, "--calibration", out, noisy, "-o", chosen, "--json", report]
    assert select.main([str(word) for word in command]) == 0
    assert "calibrated ranker" in capsys.readouterr().out
    assert json.loads(report.read_text())["calibration"] == str(out)
    assert len(list(chosen.glob("*.wav"))) == 12


def test_a_calibration_of_something_else_is_refused(folders, pool, ranker, tmp_path, capsys):
    known_pool({"much": (0.0, SHA), "none": 0.0}, 1.0, ranker.file.sha256).write(
        tmp_path / "pool.json"
    )
    words = ["--ranker", str(ranker.file.path), "--calibration", str(tmp_path / "pool.json")]
    noisy = str(folders[0])
    for experts, reason in (
        (pool[:1], "much has changed since; calibrate again"),
        (pool[1:], "bit is not in it; calibrate again"),
    ):
        command = [*words, noisy, "-o", str(tmp_path / "out"), "--experts", *map(str, experts)]
        assert select.main(command) == 1
        assert f"pool.json: {reason}" in capsys.readouterr().err
    assert select.main(["--calibration", str(tmp_path / "pool.json"), noisy]) == 1
    assert "made with another ranker" in capsys.readouterr().err
    known = {path.stem: (0.0, sha256_of(path)) for path in pool} | {"none": 0.0}
    known_pool(known, 1.0, ranker.file.sha256).write(tmp_path / "pool.json")
    command = [*words, noisy, "-o", str(tmp_path / "out"), "--experts", *map(str, pool)]
    assert select.main(command) == 1
    assert "none is not in this pool" in capsys.readouterr().err
    for more, reason in (
        (["--judge", "both"], "--calibration goes with --judge ranker"),
        (["--judge", "ranker", "--scoring", "paper"], "--scoring paper is not"),
        (["--check", "--selector-experts", *map(str, pool)], "--check compares nothing"),
    ):
        with pytest.raises(SystemExit):
            select.main([*command, *more])
        assert reason in capsys.readouterr().err


def test_parts_left_out_say_what_it_is_worth(rng):
    """The plain ranker is fooled in every file, and the calibration is not."""
    num_files, clean = 24, rng.standard_normal(400)
    errors = [0.3, 0.5, 1.0]
    estimates = np.stack([
        [clean + level * rng.standard_normal(400) for level in errors] for _ in range(num_files)
    ])  # fmt: skip
    signals = np.concatenate([estimates, np.broadcast_to(clean, (num_files, 1, 400))], axis=1)
    sdr_db = np.tile(-20 * np.log10(errors), (num_files, 1)) + rng.normal(0, 0.1, (num_files, 3))
    costs = 10 ** (-sdr_db / 10) * [1.0, 1.0, 0.01]
    between = drawn_between(rng, num_files, 3)
    products = signals @ signals.transpose(0, 2, 1)
    found = held_out(costs, between, sdr_db, products, list("abc"))
    assert found.best == "a"
    si_sdr_db = {name: [] for name in "abc"}
    for own in estimates:
        for name, estimate in zip("abc", own, strict=True):
            si_sdr_db[name].append(si_sdr(clean, estimate).value)
    means = {name: np.mean(values) for name, values in si_sdr_db.items()}
    assert found.si_sdr_db["best"] == pytest.approx(means["a"], abs=1e-6)
    assert found.si_sdr_db["pick"] == pytest.approx(means["c"], abs=1e-6)
    assert found.si_sdr_db["calibrated pick"] == pytest.approx(means["a"], abs=1e-6)
    assert found.si_sdr_db["calibrated sum"] > found.si_sdr_db["sum"] + 5
    few = slice(0, MIN_FILES)
    assert held_out(costs[few], between[few], sdr_db[few], products[few], list("abc")) is None


def test_a_tool_that_is_late_or_has_the_clean_speech_is_told_of(
    folders, pool, ranker, tmp_path, capsys
):
    noisy, clean = folders
    for folder in folders:  # one more, so that a part can be left out
        (folder / "a12.wav").write_bytes((folder / "a03.wav").read_bytes())
    words = ["--noisy", noisy, "--clean", clean, "--experts", *pool[:1], "--ranker",
             ranker.file.path, "-o", tmp_path / "pool.json"]  # fmt: skip
    late = tmp_path / "late"
    late.mkdir()
    for path in noisy.glob("*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(late / path.name, np.roll(samples, 160), rate)
    command = [*words, "--candidates", f"late={late}"]
    assert calibrate.main([str(word) for word in command]) == 0
    told = capsys.readouterr()
    assert "warning: late is late by 160 samples" in told.err and "on parts left out" in told.out
    assert "much is" not in told.err
    command = [*words, "--candidates", f"tool={clean}"]
    assert calibrate.main([str(word) for word in command]) == 1
    errors = capsys.readouterr().err
    assert "tool gives the clean speech" in errors
    assert "tool gives nothing of use for 13 of 13; 0 mixtures are left" in errors


def test_a_delay_is_one_that_mixtures_agree_on(rng):
    late = np.stack([rng.integers(-4000, 4000, 41), np.full(41, 160), np.full(41, 9)], axis=1)
    late[:15, 1] = rng.integers(-4000, 4000, 15)
    late[20:, 0] = np.abs(late[20:, 0])  # the median is far from 0
    assert calibrate._late(["other", "late", "fine"], late) == {"late": 160}


def test_without_folders_it_takes_the_bundled_training_part(
    pool, ranker, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(calibrate, "SNRS_DB", (0.0, 10.0))
    monkeypatch.setattr(calibrate, "NUM_EACH", 1)
    with calibrate._mixtures(calibrate.CalibrateConfig()) as (pairs, _):
        noises = [pair.noise for pair in pairs]
    assert noises == sorted(noises), "parts that are left out are to be of other noises"
    command = ["--experts", *pool, "--ranker", ranker.file.path, "-o", tmp_path / "pool.json"]
    assert calibrate.main([str(word) for word in command]) == 0
    told = capsys.readouterr()
    assert "16 mixtures" in told.out and "on parts left out     much alone" in told.out
    assert "were trained on these voices" in told.err


def test_one_file_of_a_tool_is_not_taken_for_two(folders, pool, ranker, tmp_path, capsys):
    noisy, clean = folders
    samples, rate = soundfile.read(noisy / "a00.wav")
    for name in ("rain", "birds"):
        (noisy / name).mkdir()
        soundfile.write(noisy / name / "b.wav", samples, rate)
    tool = tmp_path / "tool"
    tool.mkdir()
    soundfile.write(tool / "b.wav", samples, rate)
    words = ["--experts", *pool, "--candidates", f"tool={tool}", "--ranker", ranker.file.path]
    for main, more in (
        (select.main, [noisy, "-o", tmp_path / "out"]),
        (calibrate.main, ["--noisy", noisy, "--clean", clean, "-o", tmp_path / "pool.json"]),
    ):
        if main is calibrate.main:
            soundfile.write(clean / "b.wav", samples, rate)
        assert main([str(word) for word in [*words, *more]]) == 1
        error = capsys.readouterr().err
        assert "b.wav: fits" in error and "give it the sub-folders" in error


def test_files_that_tell_nothing_are_skipped(folders, pool, ranker, tmp_path, capsys):
    noisy, clean = folders
    soundfile.write(clean / "a00.wav", np.zeros(12000), 16000)
    soundfile.write(noisy / "a02.wav", np.zeros(12000), 16000)
    samples, rate = soundfile.read(clean / "a01.wav")
    soundfile.write(clean / "a01.wav", samples[:9000], rate)
    tool = tmp_path / "tool"
    tool.mkdir()
    for path in sorted(noisy.glob("*.wav"))[:-1]:
        (tool / path.name).write_bytes(path.read_bytes())
    command = ["--noisy", noisy, "--clean", clean, "--candidates", f"tool={tool}", "--experts",
               *pool, "--ranker", ranker.file.path, "-o", tmp_path / "pool.json"]  # fmt: skip
    assert calibrate.main([str(word) for word in command]) == 1
    errors = capsys.readouterr().err
    for reason in (
        "a00.wav: silent",
        "9000",
        "no file for a11.wav",
        "noisy/a02.wav: silent",
        "tool gives nothing of use for 1 of 12; 8 mixtures are left, expected 10 at least",
    ):
        assert reason in errors


def test_wrong_use(tmp_path, pool, capsys):
    for words, reason in (
        (["--noisy", "x"], "--noisy and --clean go together"),
        (["--candidates", "a=x"], "--candidates are made of the files of --noisy"),
        (["--pair-by", "x"], "--pair-by is for --noisy and --clean"),
    ):
        with pytest.raises(SystemExit):
            calibrate.main(words)
        assert reason in capsys.readouterr().err
    assert calibrate.main(["-o", str(pool[0])]) == 1
    assert "whose name ends in .json" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert calibrate.main(["-o", str(tmp_path / "file" / "x.json")]) == 1
    assert "a file stands where a folder is needed" in capsys.readouterr().err
    for experts, reason in (([tmp_path / "no.h5"], "no.h5"), (pool[:1], "nothing to choose")):
        words = ["-o", tmp_path / "x.json", "--experts", *experts]
        assert calibrate.main([str(word) for word in words]) == 1
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("what", ["pick", "sum"])
@pytest.mark.parametrize(("loss_db", "is_told"), [(-1.0, False), (0.05, False), (0.5, True)])
def test_a_calibration_that_loses_is_warned_of(capsys, what, loss_db, is_told):
    own = {"best": 9.0, "pick": 9.5, "calibrated pick": 9.7, "sum": 10.0, "calibrated sum": 10.2}
    own[f"calibrated {what}"] = own[what] - loss_db
    calibrate._print_worth(HeldOut("a", own))
    told = capsys.readouterr()
    assert "a alone 9.00 dB" in told.out and f"calibrated {own[what] - loss_db:.2f}" in told.out
    assert (f"the calibrated {what} is worse" in told.err) == is_told
    assert told.err.count("warning") == is_told
    means = own | {"best": 11.0}
    calibrate._print_worth(HeldOut("a", means))
    told = capsys.readouterr().err
    assert ("a alone is better than all picks and sums" in told) == (max(own.values()) < 11)
