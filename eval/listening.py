"""The part of a page for one file: every version to hear and see, its scores, the experts' errors.

Versions stand in the order noisy, systems, the selection's choice, clean.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval import clips, scoring
from eval.figures import data_uri
from eval.metrics import METRICS, SAMPLE_RATE_HZ
from eval.scoring import NOISY
from eval.testsets import CHOICE, MAIN_METRICS, TestSet, local_output
from eval.views import Cell, error_cell, error_words, metric_label, minus, number, pick_text
from speech.sound.audio import read_audio

CLEAN = "clean"

_LOGGER = logging.getLogger("speech")


@dataclass
class Version:
    """One version of a clip.

    Attributes:
        label: Noisy, a system, clean.
        path: Its file.
        scores: By metric, NaN or missing where there is none.
        shown: (heading, cell, gain in words) of what the page writes.
        audio: FLAC as a data: URI.
        image: Spectrogram as a data: URI.
        alt: Of the spectrogram.
    """

    label: str
    path: Path
    scores: dict[str, float] = field(default_factory=dict)
    shown: list[tuple[str, Cell, str]] = field(default_factory=list)
    audio: str = ""
    image: str = ""
    alt: str = ""


@dataclass
class Clip:
    """One file on the page.

    Attributes:
        name: In the tables.
        noise: Kind of noise.
        snr: In words.
        reasons: Why it was chosen.
        versions: To hear.
        seconds: Length of what is heard.
        cut: Whether the file is longer.
        headline: Noisy and best score in words.
        experts: (name, error, percent of the largest, whether picked).
        pick: In words.
        experts_note: How errors are to be read.
    """

    name: str
    noise: str
    snr: str
    reasons: list[str]
    versions: list[Version] = field(default_factory=list)
    seconds: float = 0.0
    cut: bool = False
    headline: str = ""
    experts: list[tuple[str, Cell, float, bool]] = field(default_factory=list)
    pick: str = ""
    experts_note: str = ""

    @property
    def num_bytes(self) -> int:
        """Of sound and pictures."""
        return sum(len(version.audio) + len(version.image) for version in self.versions)

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """Labels of the time axis and their places in percent."""
        step = next(s for s in (0.5, 1, 2, 5, 10, 60, 600, math.inf) if self.seconds / s <= 8)
        count = int(self.seconds / step) if math.isfinite(step) else 0
        # The last one would stand out of the picture's edge.
        times = [place * step for place in range(count + 1)]
        return [(f"{t:g}", 100 * t / self.seconds) for t in times if t <= 0.97 * self.seconds]


def listen(
    own: TestSet,
    *,
    metric: str | None,
    num_clips: int,
    num_systems: int,
    clip_seconds: float,
    num_jobs: int,
) -> list[Clip]:
    """Chooses clips of a test set, scores what is not scored, and encodes sound and pictures.

    Args:
        own: The test set.
        metric: By whose gain; None for the first.
        num_clips: At most.
        num_systems: At most, of each clip.
        clip_seconds: Longer files are cut.
        num_jobs: Processes; -1 for one per core.
    """
    metric = metric or next(iter(own.metrics), MAIN_METRICS[0])
    system = own.labels[0] if own.labels else ""
    chosen = clips.choose_clips(own.rows, system, metric, own.pairs, own.choices)[:num_clips]
    result = []
    for name, reasons in chosen:
        pair = own.pairs[name]
        snr = "SNR unknown" if math.isnan(pair.snr_db) else minus(f"{pair.snr_db:g} dB")
        clip = Clip(name, pair.noise, snr, reasons, _versions(own, name, num_systems))
        _add_experts(clip, own)
        result.append(clip)
    _score_missing(result, own, num_jobs)
    done = []
    for clip in result:
        try:
            _encode(clip, clip_seconds)
        except ValueError as error:
            own.notes.append(f"{clip.name} can't be heard: {error}")
            continue
        _describe(clip, own, metric)
        done.append(clip)
    return done


def _versions(own: TestSet, name: str, num_systems: int) -> list[Version]:
    pair = own.pairs[name]
    rows = {row["system"]: row for row in own.rows if row["name"] == name}
    found = [(NOISY, pair.noisy_path)]
    audible = [label for label in own.labels if name in own.files.get(label, {})]
    found += [(label, own.files[label][name]) for label in audible[:num_systems]]
    if name in own.choices:
        run, row = own.choices[name]
        output = local_output(str(row.get("output", "")), run)
        if output is not None:
            found.append((CHOICE, output))
    if pair.clean_path != pair.noisy_path:
        found.append((CLEAN, pair.clean_path))
    return [
        Version(label, path, {m: rows[label][m] for m in rows.get(label, {}) if m in METRICS})
        for label, path in found
    ]


def _add_experts(clip: Clip, own: TestSet) -> None:
    if clip.name not in own.choices:
        return
    run, row = own.choices[clip.name]
    values = {k: v for k, v in row["scores"].items() if isinstance(v, int | float)}
    largest = max((abs(v) for v in values.values() if math.isfinite(v)), default=0.0) or 1.0
    clip.experts = [
        (str(name), error_cell(value), 100 * abs(value) / largest, name == row.get("pick"))
        for name, value in values.items()
        if math.isfinite(value)
    ]
    clip.pick, clip.experts_note = pick_text(row), error_words(run)


def _score_missing(result: Sequence[Clip], own: TestSet, num_jobs: int) -> None:
    """Scores the versions that no run has scored, where the clean file is known."""
    wanted = tuple(m for m in MAIN_METRICS if m in own.metrics) or MAIN_METRICS
    waiting, tasks = [], []
    for clip in result:
        pair = own.pairs[clip.name]
        for version in clip.versions:
            has_score = any(math.isfinite(version.scores.get(m, math.nan)) for m in wanted)
            if version.label == CLEAN or has_score or pair.clean_path == pair.noisy_path:
                continue
            waiting.append(version)
            tasks.append(
                scoring.Task(
                    version.label, version.path, pair.clean_path, clip.noise, pair.snr_db,
                    clip.name, pair.noisy_path,
                )
            )  # fmt: skip
    if tasks:
        for version, row in zip(waiting, scoring.score_all(tasks, num_jobs, wanted), strict=True):
            version.scores |= {name: row[name] for name in wanted}


def _encode(clip: Clip, clip_seconds: float) -> None:
    """Fills in sound and pictures.

    Raises:
        ValueError: The noisy file can't be read.
    """
    limit = round(clip_seconds * SAMPLE_RATE_HZ)
    signals: dict[str, np.ndarray] = {}
    for version in list(clip.versions):
        try:
            signal = read_audio(version.path).samples
        except ValueError as error:
            if version.label == NOISY:
                raise
            _LOGGER.warning("left out of the page: %s", error)
            clip.versions.remove(version)
            continue
        if version.label == NOISY:
            clip.cut = len(signal) > limit
        signals[version.label] = signal[:limit]
    signals = clips.levelled(signals)
    top_db = clips.top_level_db(signals)
    clip.seconds = len(signals[NOISY]) / SAMPLE_RATE_HZ
    for version in clip.versions:
        signal = signals[version.label]
        version.audio = data_uri(clips.flac(signal), "audio/flac")
        version.image = data_uri(clips.spectrogram_png(signal, top_db), "image/png")
    _join_equal(clip)


def _join_equal(clip: Clip) -> None:
    """Joins systems that have made the very same of a file."""
    first: dict[str, Version] = {}
    for version in list(clip.versions):
        twin = first.setdefault(version.audio, version)
        if twin is not version and version.label != CLEAN and twin.label != NOISY:
            twin.label += f", {version.label}"
            twin.scores = version.scores | twin.scores
            clip.versions.remove(version)


def _describe(clip: Clip, own: TestSet, metric: str) -> None:
    shown = [m for m in MAIN_METRICS if any(m in v.scores for v in clip.versions)] or own.metrics[
        :2
    ]
    noisy = clip.versions[0].scores
    for version in clip.versions:
        for name in shown:
            value = version.scores.get(name, math.nan)
            if math.isfinite(value):
                digits = 2 if METRICS[name].unit else 3
                gain = value - noisy.get(name, math.nan)
                is_gain = version is not clip.versions[0] and math.isfinite(gain)
                words = minus(f"{gain:+.{digits}f}") if is_gain else ""
                version.shown.append((metric_label(name), number(value, digits), words))
        scores = ", ".join(f"{label} {cell.text}" for label, cell, _ in version.shown)
        version.alt = (
            f"Spectrogram of {version.label}: {clip.noise}, {clip.snr}, {clip.seconds:.1f} "
            f"seconds, 0 to 8 kHz{'; ' + scores if scores else ''}"
        )
    clip.headline = _headline(clip, metric if metric in shown else next(iter(shown), ""), noisy)


def _headline(clip: Clip, metric: str, noisy: Mapping[str, float]) -> str:
    if metric not in METRICS or not math.isfinite(noisy.get(metric, math.nan)):
        return ""
    sign = 1 if METRICS[metric].higher_is_better else -1
    values = [
        (sign * version.scores[metric], version.scores[metric], version.label)
        for version in clip.versions[1:]
        if math.isfinite(version.scores.get(metric, math.nan))
    ]
    if not values:
        return ""
    _, best, label = max(values)
    return f"{metric_label(metric)} {minus(f'{noisy[metric]:.2f} → {best:.2f}')} by {label}"
