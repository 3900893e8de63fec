"""Pictures, drawn without a display.

Every function returns its ``matplotlib`` figure and, given a path, writes it: PNG, SVG or PDF by
the ending, PNG and SVG both if there is none. Scores are rows as ``eval.scoring`` makes them: one
dict a file and system, with system, noise, snr_db and a column a metric; NaN is left out. Systems
keep their colour and marker from picture to picture, in the order in which they first occur; the
colours are those of Okabe and Ito, which the colour-blind tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics import METRICS
from eval.statistics import bootstrap_interval
from speech.base.lazy import matplotlib
from speech.sound.pictures import COLORS, new_figure, written

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

#: Of series in ``score_against_size``.
MOST_IN_LEGEND = 12

#: Of the labels that mark a point of ``score_against_size``.
SYMBOLS = {"theta": r"$\theta$", "k": "k"}

#: Read off the figure of Wu et al. 2019 (docs/papers.md): theta, k, size in percent, PESQ.
PUBLISHED_SIZE_PESQ = (
    (0.65, 64, 14.65, 2.54),
    (0.65, 32, 12.2, 2.535),
    (0.65, 16, 9.76, 2.525),
    (0.65, 8, 7.32, 2.52),
    (0.65, 4, 4.9, 2.39),
    (0.70, 64, 16.1, 2.55),
    (0.70, 32, 13.4, 2.55),
    (0.70, 16, 10.7, 2.546),
    (0.70, 8, 8.05, 2.53),
    (0.70, 4, 5.4, 2.42),
)
PUBLISHED_NAME = "Wu et al. 2019, TIMIT"

#: Analysis of spectrograms at 16 kHz: 32 ms, 75 % overlap.
FRAME_SAMPLES = 512
HOP_SAMPLES = 128


def score_by_snr(
    rows: Sequence[Mapping[str, Any]], metric: str, path: Path | None = None, title: str = ""
) -> matplotlib.figure.Figure:
    """Draws a metric's mean against the SNR, a line per system.

    Bars are 95 % bootstrap intervals of the mean (``eval.statistics``), a little apart so that they
    do not hide each other; a single file has none. Files of unknown SNR are left out.

    Args:
        rows: Scores.
        metric: Column.
        path: Where to write it.
        title: Above the picture.

    Raises:
        ValueError: No row has an SNR and a score.
    """
    rows = [row for row in _scored(rows, metric) if math.isfinite(row["snr_db"])]
    if not rows:
        raise ValueError(f"no row has both {metric!r} and an SNR; nothing to draw")
    systems = _names(rows, "system")
    snrs_db = sorted({row["snr_db"] for row in rows})
    gap = min(np.diff(snrs_db), default=5.0)
    figure, axes = new_figure(7, 4.5)
    for index, (system, color, marker) in enumerate(_styles(systems)):
        groups = {
            snr: [r[metric] for r in rows if r["system"] == system and r["snr_db"] == snr]
            for snr in snrs_db
        }
        groups = {snr: values for snr, values in groups.items() if values}
        means = np.array([np.mean(values) for values in groups.values()])
        intervals = np.array(
            [np.ravel(bootstrap_interval(np.array(own)[:, None])) for own in groups.values()]
        )
        shift = gap * 0.03 * (index - (len(systems) - 1) / 2)
        axes.errorbar(
            np.array(list(groups)) + shift,
            means,
            yerr=np.abs(intervals.T - means),
            label=system,
            color=color,
            marker=marker,
            markersize=5,
            capsize=3,
            linewidth=1.5,
        )
    axes.set_xticks(snrs_db, [f"{snr:g}" for snr in snrs_db])
    axes.set_xlabel("SNR of the noisy signal (dB)")
    axes.set_ylabel(f"{_label(metric)}, mean and 95 % interval")
    axes.grid(True, alpha=0.3)
    axes.legend()
    axes.set_title(title)
    return written(figure, path)


def score_against_size(
    points: Sequence[Mapping[str, Any]],
    metric: str,
    path: Path | None = None,
    title: str = "",
    *,
    size: str = "file_percent",
    size_label: str = "file size (% of the first model's file)",
    published: bool = False,
) -> matplotlib.figure.Figure:
    """Draws a metric against size, log axis: the figure of Wu et al. 2019.

    Points of one ``series`` are joined; more than `MOST_IN_LEGEND` have no legend, which would
    leave no room for the picture. Beside each point stands its ``text``, or its theta and k, of
    which what is in the name of the series is not said again.

    Args:
        points: Dicts with 'series', ``size`` and ``metric``; optionally 'text', 'theta', 'k', and
            ``<metric>_low`` and ``<metric>_high``, the ends of an interval.
        metric: Column on the y axis.
        path: Where to write it.
        title: Above the picture.
        size: Column on the x axis, above 0.
        size_label: Its name and unit.
        published: Add the published points as crosses, on an axis of their own at the right:
            theirs is PESQ on TIMIT against the paper's rule of size (docs/papers.md, eq. Q3).

    Raises:
        ValueError: A size is not above 0, or no point has a size and a score.
    """
    points = [p for p in points if math.isfinite(p[metric]) and math.isfinite(p[size])]
    if not points:
        raise ValueError(f"no point has both {metric!r} and {size!r}; nothing to draw")
    if min(point[size] for point in points) <= 0:
        raise ValueError(f"{size!r} is {min(p[size] for p in points)!r}, expected above 0")
    figure, axes = new_figure(7.5, 5)
    for series, color, marker in _styles(_names(points, "series")):
        own = sorted((p for p in points if p["series"] == series), key=lambda p: p[size])
        sizes = [point[size] for point in own]
        scores = np.array([point[metric] for point in own])
        ends = np.array(
            [[p.get(f"{metric}_{end}", p[metric]) for p in own] for end in ("low", "high")]
        )
        axes.errorbar(
            sizes, scores, yerr=np.abs(ends - scores), label=series, color=color, marker=marker,
            markersize=6, capsize=2, linewidth=1.2,
        )  # fmt: skip
        for point in own:
            _annotate(axes, _point_text(point, series), (point[size], point[metric]), color)
    axes.set_xlabel(size_label)
    axes.set_ylabel(_label(metric))
    if published:
        _draw_published(axes)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.margins(x=0.08, y=0.1)
    axes.grid(True, which="both", alpha=0.3)
    if 1 < len(_names(points, "series")) <= MOST_IN_LEGEND or published:
        axes.legend(loc="lower right", fontsize=8)
    axes.set_title(title, fontsize=10)
    return written(figure, path)


def spectrogram_triptych(
    noisy: np.ndarray,
    enhanced: np.ndarray,
    clean: np.ndarray,
    path: Path | None = None,
    title: str = "",
    *,
    sample_rate_hz: int = 16000,
    range_db: float = 70.0,
) -> matplotlib.figure.Figure:
    """Draws the spectrograms of noisy, enhanced and clean side by side.

    All three share one colour scale with the loudest point of the three as its top, so that levels
    can be compared. The enhanced signal is shown as it is; scale it first if its level means
    nothing.

    Args:
        noisy: float [num_samples]; likewise enhanced and clean, of equal length.
        enhanced: See there.
        clean: See there.
        path: Where to write it.
        title: Above the picture.
        sample_rate_hz: Of all three.
        range_db: From the top of the scale to its bottom.

    Raises:
        ValueError: Shapes differ, a signal is shorter than a frame, or range_db is not positive.
    """
    signals = {"noisy": noisy, "enhanced": enhanced, "clean": clean}
    shapes = {name: np.shape(signal) for name, signal in signals.items()}
    if len(set(shapes.values())) > 1 or np.ndim(noisy) != 1 or len(noisy) < FRAME_SAMPLES:
        raise ValueError(
            f"shapes are {shapes}, expected one [num_samples], at least {FRAME_SAMPLES}"
        )
    if range_db <= 0:
        raise ValueError(f"range_db is {range_db!r}, expected above 0")
    levels_db = {name: spectrogram_db(signal) for name, signal in signals.items()}
    top_db = max(float(level.max()) for level in levels_db.values())
    figure, all_axes = new_figure(12, 3.8, ncols=3)
    duration_s = len(noisy) / sample_rate_hz
    for axes, (name, level_db) in zip(all_axes, levels_db.items(), strict=True):
        image = axes.imshow(
            level_db.T, origin="lower", aspect="auto", cmap="viridis", vmin=top_db - range_db,
            vmax=top_db, extent=(0, duration_s, 0, sample_rate_hz / 2000), interpolation="nearest",
        )  # fmt: skip
        axes.set_title(name)
        axes.set_xlabel("time (s)")
    all_axes[0].set_ylabel("frequency (kHz)")
    bar = figure.colorbar(image, ax=list(all_axes), pad=0.01)
    bar.set_label(f"level (dB re full scale), top {range_db:g} dB")
    figure.suptitle(title)
    return written(figure, path)


def spectrogram_db(signal: np.ndarray) -> np.ndarray:
    """Returns the level of a signal in time and frequency.

    Hann window of 512 samples, hop 128. A sine of amplitude 1 has 0 dB; silence has -200 dB.

    Args:
        signal: float [num_samples], at least 512.

    Returns:
        float64 [num_frames, 257], dB.
    """
    window = np.hanning(FRAME_SAMPLES + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(signal, float), FRAME_SAMPLES)
    spectra = np.fft.rfft(frames[::HOP_SAMPLES] * window)
    return 20 * np.log10(np.maximum(2 * np.abs(spectra) / window.sum(), 1e-10))


def _draw_published(axes: matplotlib.axes.Axes) -> None:
    """Adds the published points on an axis at the right: another corpus, another level of PESQ."""
    right = axes.twinx()
    for theta, marker in ((0.65, "x"), (0.70, "+")):
        own = [row for row in PUBLISHED_SIZE_PESQ if row[0] == theta]
        sizes, scores = [row[2] for row in own], [row[3] for row in own]
        label = rf"{PUBLISHED_NAME}, $\theta$ = {theta:.2f} (right)"
        right.plot(sizes, scores, marker=marker, color="0.45", linestyle=":", label=label)
        # The left axes' legend lists them too.
        axes.plot([], [], marker=marker, color="0.45", linestyle=":", label=label)
        for _, k, percent, pesq in own:
            _annotate(right, f"k = {k}", (percent, pesq), "0.45")
    right.set_ylabel(f"PESQ of {PUBLISHED_NAME} (size by its own rule)", color="0.45")
    right.tick_params(axis="y", colors="0.45")
    right.margins(y=0.1)


def _annotate(
    axes: matplotlib.axes.Axes, text: str, place: tuple[float, float], color: str
) -> None:
    if text:
        axes.annotate(
            text, place, xytext=(4, 5), textcoords="offset points", fontsize=7, color=color
        )


def _point_text(point: Mapping[str, Any], series: str) -> str:
    if point.get("text"):
        return str(point["text"])
    found = {
        key: f"{symbol} = {point[key]:g}"
        for key, symbol in SYMBOLS.items()
        if point.get(key) is not None
    }
    return ", ".join(text for text in found.values() if text not in series)


def _scored(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if math.isfinite(row[metric])]


def _names(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _styles(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Returns (name, colour, marker): beyond eight names colours repeat with other markers."""
    colors, shifts = cycle(COLORS), [index // len(COLORS) for index in range(len(names))]
    return [
        (name, color, MARKERS[(index + shift) % len(MARKERS)])
        for index, (name, color, shift) in enumerate(zip(names, colors, shifts, strict=False))
    ]


def _label(metric: str) -> str:
    known = METRICS.get(metric)
    if known is None:
        return metric
    return f"{known.label} ({known.unit})" if known.unit == "dB" else known.label
