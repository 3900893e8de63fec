"""Pictures: what is drawn is what was given, and everything is labelled."""

import json
import math
import xml.etree.ElementTree
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from eval import plots
from speech.sound import pictures

GOLDEN = json.loads((Path(__file__).parent / "golden" / "published_cost.json").read_text())


@pytest.fixture
def rows(rng):
    """Two systems, two noises, two SNRs, four files each; one score is missing."""
    table = [
        {"system": system, "noise": noise, "snr_db": snr_db, "name": f"{noise}{snr_db}{index}",
         "pesq_wb": 1.5 + 0.05 * snr_db + 0.1 * rng.random(), "sdr": rng.random(), "status": "ok"}
        for system in ("noisy", "fcn")
        for noise in ("typing", "birds")
        for snr_db in (0.0, 5.0)
        for index in range(4)
    ]  # fmt: skip
    table[3] |= {"pesq_wb": math.nan, "status": "reference is silent"}
    return table


def values_of(rows, metric="pesq_wb", **wanted):
    chosen = [r[metric] for r in rows if all(r[key] == value for key, value in wanted.items())]
    return [value for value in chosen if not math.isnan(value)]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_score_by_snr_draws_means_and_intervals(rows):
    axes = plots.score_by_snr(rows, "pesq_wb", title="test").axes[0]
    for index, (container, system) in enumerate(
        zip(axes.containers, ("noisy", "fcn"), strict=True)
    ):
        line, _, (bars,) = container.lines
        means = [np.mean(values_of(rows, system=system, snr_db=snr)) for snr in (0.0, 5.0)]
        np.testing.assert_allclose(line.get_ydata(), means, rtol=1e-12, atol=0)
        np.testing.assert_allclose(line.get_xdata(), [0, 5], rtol=0, atol=0.2)
        for segment, snr in zip(bars.get_segments(), (0.0, 5.0), strict=True):
            own = values_of(rows, system=system, snr_db=snr)
            low, high = segment[:, 1]
            assert min(own) <= low < np.mean(own) < high <= max(own)
        assert line.get_color() == plots.COLORS[index]
    assert legend_of(axes) == ["noisy", "fcn"]
    assert axes.get_xlabel() == "SNR of the noisy signal (dB)"
    assert axes.get_ylabel() == "PESQ-WB, mean and 95 % interval"
    assert axes.get_title() == "test"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "5"]


def test_units_stand_at_the_axis(rows):
    assert plots.score_by_snr(rows, "sdr").axes[0].get_ylabel().startswith("SDR (dB)")
    rows = [row | {"own_metric": 1.0} for row in rows]
    assert plots.score_by_snr(rows, "own_metric").axes[0].get_ylabel().startswith("own_metric,")


def test_one_file_of_unknown_snr_and_one_alone(rows):
    rows = [row | {"snr_db": math.nan} for row in rows[:4]] + rows[4:5]
    axes = plots.score_by_snr(rows, "pesq_wb").axes[0]
    assert list(axes.containers[0].lines[0].get_ydata()) == [rows[4]["pesq_wb"]]
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.score_by_snr(rows[:4], "pesq_wb")


POINTS = [
    {"series": "fcn", "text": "fcn", "file_percent": 100.0, "pesq_wb": 2.0},
    {"series": "PP", "theta": 0.65, "k": 16, "file_percent": 8.0, "pesq_wb": 1.9,
     "pesq_wb_low": 1.85, "pesq_wb_high": 1.95},
    {"series": "PP", "theta": 0.65, "k": 4, "file_percent": 5.0, "pesq_wb": 1.7,
     "pesq_wb_low": 1.65, "pesq_wb_high": 1.75},
    {"series": r"$\theta$ = 0.7", "theta": 0.7, "k": 8, "file_percent": 6.0, "pesq_wb": 1.8},
]  # fmt: skip


def test_score_against_size_marks_theta_and_k():
    axes = plots.score_against_size(POINTS, "pesq_wb").axes[0]
    assert axes.get_xscale() == "log"
    drawn = {
        (x, y)
        for container in axes.containers
        for x, y in zip(*container.lines[0].get_data(), strict=True)
    }
    assert drawn == {(point["file_percent"], point["pesq_wb"]) for point in POINTS}
    texts = {text.xy: text.get_text() for text in axes.texts}
    assert texts == {
        (100.0, 2.0): "fcn",
        (8.0, 1.9): r"$\theta$ = 0.65, k = 16",
        (5.0, 1.7): r"$\theta$ = 0.65, k = 4",
        (6.0, 1.8): "k = 8",  # theta stands in the name of the series
    }
    segments = axes.containers[1].lines[2][0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments], [[1.65, 1.75], [1.85, 1.95]])
    assert axes.get_xlabel() == "file size (% of the first model's file)"
    assert axes.get_ylabel() == "PESQ-WB"


def test_published_points_have_an_axis_of_their_own():
    own, published = plots.score_against_size(POINTS, "pesq_wb", published=True).axes
    drawn = {(x, y) for line in published.lines for x, y in zip(*line.get_data(), strict=True)}
    assert drawn == {tuple(row[2:]) for row in GOLDEN["size_against_score"]["rows"]}
    assert [list(row) for row in plots.PUBLISHED_SIZE_PESQ] == GOLDEN["size_against_score"]["rows"]
    assert sorted(text.get_text() for text in published.texts) == sorted(
        f"k = {k}" for k in (4, 8, 16, 32, 64) for _ in range(2)
    )
    assert "Wu et al. 2019" in published.get_ylabel()
    assert sum("Wu et al. 2019" in label for label in legend_of(own)) == 2


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="expected above 0"):
        plots.score_against_size([POINTS[0] | {"file_percent": 0.0}], "pesq_wb")
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.score_against_size([POINTS[0] | {"pesq_wb": math.nan}], "pesq_wb")


def test_triptych_has_one_scale(rng):
    clean = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    noisy, enhanced = (clean + level * rng.standard_normal(16000) for level in (0.1, 0.01))
    figure = plots.spectrogram_triptych(noisy, enhanced, clean, title="birds, 5 dB", range_db=60)
    panels, bar = figure.axes[:3], figure.axes[3]
    assert [axes.get_title() for axes in panels] == ["noisy", "enhanced", "clean"]
    limits = {axes.images[0].get_clim() for axes in panels}
    ((low, high),) = limits
    assert high - low == pytest.approx(60)
    assert high == max(float(axes.images[0].get_array().max()) for axes in panels)
    for axes, signal in zip(panels, (noisy, enhanced, clean), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), plots.spectrogram_db(signal).T)
        assert axes.images[0].get_extent() == [0, 1, 0, 8]
        assert axes.get_xlabel() == "time (s)"
    assert panels[0].get_ylabel() == "frequency (kHz)"
    assert bar.get_ylabel() == "level (dB re full scale), top 60 dB"


@pytest.mark.parametrize("shapes", [(9000, 9000, 8999), (100, 100, 100)])
def test_triptych_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="expected one"):
        plots.spectrogram_triptych(*(np.zeros(n) for n in shapes))
    with pytest.raises(ValueError, match="above 0"):
        plots.spectrogram_triptych(*(np.zeros(9000) for _ in shapes), range_db=0)


def test_spectrogram_level_is_that_of_the_sine():
    """1000 Hz lies in the middle of bin 32."""
    sine = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(4096) / 16000)
    level_db = plots.spectrogram_db(sine)
    assert level_db.shape == ((4096 - 512) // 128 + 1, 257)
    np.testing.assert_allclose(level_db[:, 32], -20, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(plots.spectrogram_db(np.zeros(512)), -200)


def test_learning_curve_of_a_loss_below_zero_is_linear():
    history = [{"epoch": e, "training_loss": -5.0 - e, "validation_loss": -4.0} for e in (1, 2)]
    axes = pictures.learning_curve(history, loss="negative SI-SDR in dB").axes[0]
    assert axes.get_yscale() == "linear" and axes.get_ylabel() == "negative SI-SDR in dB"


def test_learning_curve_marks_the_best_epoch():
    history = [
        {"epoch": epoch, "training_loss": 0.1 / epoch, "validation_loss": 0.2 / epoch}
        for epoch in (1, 2, 3)
    ]
    axes = pictures.learning_curve(history, title="FCN").axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.1, 0.05, 0.1 / 3])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [0.2, 0.1, 0.2 / 3])
    assert legend_of(axes)[1] == "validation (best 0.06667 in epoch 3)"
    assert axes.get_ylabel() and axes.get_xlabel() == "epoch"


def test_png_and_svg_are_written_and_the_same_each_time(rows, tmp_path):
    plots.score_by_snr(rows, "pesq_wb", tmp_path / "score")
    image = matplotlib.image.imread(tmp_path / "score.png")
    assert image.shape[0] > 400 and image.shape[1] > 700
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 10
    root = xml.etree.ElementTree.parse(tmp_path / "score.svg").getroot()
    assert root.tag.endswith("svg") and len(list(root.iter())) > 50
    first = (tmp_path / "score.svg").read_bytes()
    plots.score_by_snr(rows, "pesq_wb", tmp_path / "score.svg")
    assert (tmp_path / "score.svg").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["score.png", "score.svg"]


def test_many_systems_stay_apart():
    styles = plots._styles([f"system{index}" for index in range(20)])
    assert len({(color, marker) for _, color, marker in styles}) == 20
