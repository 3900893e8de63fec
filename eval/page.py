"""Builds the page of `eval.report` from runs: sections, figures, clips; and writes it as HTML."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval import plots, views
from eval.figures import Picture, picture, plain
from eval.listening import Clip, listen
from eval.metrics import METRICS
from eval.runfiles import Run
from eval.scoring import NOISY, OVERALL, format_snr
from eval.testsets import TestSet
from eval.views import Table
from speech.base.lazy import jinja2
from speech.base.words import MOST, shown
from speech.sound.pictures import learning_curve

_TEMPLATES = Path(__file__).parent / "templates"

#: Rows of the table of a selection.
_MAX_CHOICES = 300

_KINDS = {
    "training": "Training",
    "evaluation": "Evaluation",
    "sweep": "Sweep",
    "selection": "Selection among experts",
    "experiment": "Selection experiment",
}


@dataclass
class Section:
    """One test set, selection, experiment or training on the page.

    Attributes:
        key: Of the links to it.
        title: Heading.
        lead: What it is about, in a sentence.
        tables: Shown at once.
        more: Shown when asked for.
        pictures: Figures.
        clips: To hear.
        how: By what they were chosen.
        notes: What could not be had.
    """

    key: str
    title: str
    lead: str = ""
    tables: list[Table] = field(default_factory=list)
    more: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    how: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class Page:
    """All that the template writes down.

    Attributes:
        title: Heading.
        sections: In order.
        runs: What it was made of.
        notes: Of all sections, and of the whole.
    """

    title: str
    sections: list[Section]
    runs: list[Run]
    notes: list[str] = field(default_factory=list)


def build(
    runs: Sequence[Run],
    sets: Sequence[TestSet],
    *,
    title: str,
    metric: str | None,
    num_clips: int,
    num_systems: int,
    clip_seconds: float,
    num_jobs: int,
) -> Page:
    """Collects everything.

    Args:
        runs: All of the page.
        sets: Of `eval.testsets.join_runs`.
        title: Of the page.
        metric: See `eval.listening.listen`; likewise the others.
        num_clips: See there.
        num_systems: See there.
        clip_seconds: See there.
        num_jobs: See there.
    """
    sections = []
    for own in sets:
        section = _scored(own, num_systems) if own.summary else _heard(own)
        section.clips = listen(
            own,
            metric=metric,
            num_clips=num_clips,
            num_systems=num_systems,
            clip_seconds=clip_seconds,
            num_jobs=num_jobs,
        )
        section.notes = own.notes
        section.how = _how_chosen(own, metric) if section.clips else ""
        sections.append(section)
    sections += [_selection(run) for run in runs if run.kind == "selection"]
    sections += [_experiment(run) for run in runs if run.kind == "experiment"]
    sections += [_training(run) for run in runs if run.history]
    for number, section in enumerate(sections, 1):
        section.key = f"part{number}"
    notes = [note for section in sections for note in section.notes]
    return Page(title, sections, list(runs), notes)


def render(page: Page, max_bytes: int) -> str:
    """Returns the page as HTML of a limited size; clips are left out for it, from the end.

    Args:
        page: The page; loses the clips that have no room, and gains a note then.
        max_bytes: Of the HTML.

    Raises:
        ValueError: Even without any clip it is too large.
    """
    clips = [clip for section in page.sections for clip in section.clips]
    order = sorted(clips, key=_priority)
    bare = len(_html(page, with_clips=False).encode())
    if bare > max_bytes:
        raise ValueError(
            f"the page has {bare / 1e6:.1f} MB without any clip, more than the "
            f"{max_bytes / 1e6:g} MB asked for; give fewer runs, or more with --max-mb"
        )
    room = max_bytes - bare
    kept = []
    for clip in order:
        # What a clip needs besides sound and pictures is small.
        need = clip.num_bytes + _MARKUP_BYTES * (len(clip.versions) + len(clip.experts) + 2)
        if need > room:
            break
        room -= need
        kept.append(clip)
    if len(kept) < len(clips):
        page.notes.append(
            f"{len(clips) - len(kept)} of {len(clips)} clips were left out: the page would grow "
            f"beyond {max_bytes / 1e6:g} MB (--max-mb)"
        )
    keys = {id(clip) for clip in kept}
    for section in page.sections:
        section.clips = [clip for clip in section.clips if id(clip) in keys]
    return _html(page)


#: Generous: of a version's names, scores and tags.
_MARKUP_BYTES = 3000


def _priority(clip: Clip) -> int:
    """Returns 0 for best, median and worst gain, 1 for the rest."""
    return 0 if any("gain" in reason for reason in clip.reasons) else 1


def _html(page: Page, with_clips: bool = True) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_TEMPLATES / f"report.{kind}").read_text() for kind in ("css", "js"))
    digest = hashlib.sha256(script.encode()).digest()
    text = environment.get_template("report.html").render(
        page=page,
        with_clips=with_clips,
        kinds=_KINDS,
        style=style,
        script=script,
        script_hash=base64.b64encode(digest).decode(),
    )
    # A folder may have a name that is no text; it is shown with question marks.
    return text.encode("utf-8", "replace").decode()


def _finalized(value: Any) -> Any:
    """Returns what a template writes: words from files are cut, and show what turns text around.

    What is marked as safe is ours.
    """
    return shown(value, MOST) if type(value) is str else value


def _scored(own: TestSet, num_systems: int) -> Section:
    overall = {g["system"]: g for g in own.summary if g["noise"] == g["snr_db"] == OVERALL}
    kinds = {row["noise"] for row in own.rows}
    names = {row["name"] for row in own.rows}
    section = Section("", "Scores: " + ", ".join(run.title for run in own.runs))
    section.lead = f"{_count(len(names), 'noisy file')}, {_count(len(kinds), 'noise')}"
    snrs = sorted({r["snr_db"] for r in own.rows if math.isfinite(r["snr_db"])})
    if snrs:
        ends = [views.minus(f"{snr:g}") for snr in (snrs[0], snrs[-1])]
        section.lead += f", SNR {ends[0]} to {ends[1]} dB" if len(snrs) > 1 else f", {ends[0]} dB"
    section.tables = [views.scores_table(own)]
    differences = views.differences_table(own)
    section.more = [differences] if differences else []
    section.more.append(views.conditions_table(own))
    for name in [m for m in own.metrics if m in ("pesq_wb", "stoi")] or own.metrics[:2]:
        section.pictures += _by_snr(own, name, snrs, num_systems) + _by_size(own, name, overall)
    return section


def _how_chosen(own: TestSet, metric: str | None) -> str:
    metric = metric or next(iter(own.metrics), None)
    if metric is None or not own.labels:
        return "One file of every noise."
    return (
        f"Files of best, median and worst gain of {own.labels[0]} in {METRICS[metric].label}, and "
        "one of every noise."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _heard(own: TestSet) -> Section:
    run = own.runs[0]
    section = Section("", f"Clips: {run.title}")
    section.lead = f"{_count(len(own.choices), 'file')}, chosen among experts."
    return section


def _by_snr(own: TestSet, metric: str, snrs: Sequence[float], num_systems: int) -> list[Picture]:
    drawn = [NOISY, *own.labels[:num_systems]]
    rows = [
        row | {"system": plain(row["system"])}
        # Noisy last: the systems then have the colours that they have in the other figure.
        for row in sorted(own.rows, key=lambda row: row["system"] == NOISY)
        if row["system"] in drawn and math.isfinite(row.get(metric, math.nan))
    ]
    if len(snrs) < 2 or not rows:
        return []
    label = METRICS[metric].label
    num_more = len(own.labels) - num_systems
    left_out = f"; {_count(num_more, 'more system')} in the tables" if num_more > 0 else ""
    means = [
        g for g in own.summary
        if g["noise"] == OVERALL and g["snr_db"] in (snrs[0], snrs[-1]) and metric in g
        and g["system"] in drawn
    ]  # fmt: skip
    words = "; ".join(
        f"{g['system']} at {format_snr(g['snr_db'])} dB {g[metric]:.3f}" for g in means
    )
    return [
        picture(
            lambda: _with_legend_below(plots.score_by_snr(rows, metric)),
            f"Line chart of {label} by SNR. {words}.",
            f"{label} by SNR: mean over the files, 95 % bootstrap intervals{left_out}",
        )
    ]


def _by_size(own: TestSet, metric: str, overall: dict[str, Any]) -> list[Picture]:
    points = []
    for _, system in own.systems:
        score = overall.get(system.label, {}).get(metric, math.nan)
        if system.num_bytes and math.isfinite(score):
            labels = {k: v for k, v in system.labels.items() if isinstance(v, int | float)}
            point = {"size": system.num_bytes / 1000, metric: score}
            point |= {key: value for key, value in labels.items() if key in plots.SYMBOLS}
            points.append(point | {"series": _series(system)})
    if len(points) < 2:
        return []
    label = METRICS[metric].label
    words = "; ".join(
        f"{system.label} {views.size_text(system.num_bytes)} {overall[system.label][metric]:.3f}"
        for _, system in own.systems
        if system.num_bytes and system.label in overall and metric in overall[system.label]
    )
    noisy = overall.get(NOISY, {}).get(metric)
    beside = f"; noisy: {noisy:.3f}" if isinstance(noisy, float) and math.isfinite(noisy) else ""
    return [
        picture(
            lambda: _with_legend_below(
                plots.score_against_size(
                    points, metric, size="size", size_label="model file (kB, log scale)"
                )
            ),
            f"Chart of {label} against the size of the model file. {words}.",
            f"{label} against the size of the model file{beside}",
        )
    ]


def _series(system: Any) -> str:
    """Returns the name of the line that joins a point with others: all its labels but k.

    A system without labels stands by itself.
    """
    if not any(value is not None for value in system.labels.values()):
        return plain(system.label)
    words = [
        f"{plots.SYMBOLS.get(key, plain(key))} = {plain(str(value))}"
        for key, value in system.labels.items()
        if key != "k" and value is not None
    ]
    return ", ".join(words) or "k-means only"


def _with_legend_below(figure: Any) -> Any:
    """Moves the legend out of the way of what is drawn."""
    axes = figure.axes[0]
    if axes.get_legend() is not None:
        axes.get_legend().remove()
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        widest = max(map(len, labels))
        columns = 1 if widest > 34 else 2 if widest > 16 else 3
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _selection(run: Run) -> Section:
    section = Section("", f"Selection among experts: {run.title}")
    names = [str(expert.get("name")) for expert in run.info["experts"] if isinstance(expert, dict)]
    section.lead = f"{_count(len(run.info['files']), 'file')}; experts: {', '.join(names)}."
    section.tables = [views.picks_table(run)]
    section.more = [views.selection_table(run, _MAX_CHOICES)]
    return section


def _experiment(run: Run) -> Section:
    section = Section("", f"Experiment: {run.title}")
    section.lead = (
        f"Experts by {run.info.get('experiment')}, {run.info.get('scale')} scale; the selection "
        f"used by default is {run.info.get('default')}."
    )
    tables = views.experiment_tables(run)
    section.tables, section.more = tables[:1], tables[1:]
    return section


def _training(run: Run) -> Section:
    section = Section("", f"Training: {run.title}")
    losses = [row[key] for row in run.history for key in ("training_loss", "validation_loss")]
    if not all(map(math.isfinite, losses)):
        section.notes.append(f"{run.title}: an error in its history is not finite")
        return section
    best = min(run.history, key=lambda row: row["validation_loss"])
    section.lead = (
        f"{_count(len(run.history), 'epoch')}; best validation error "
        f"{best['validation_loss']:.5f} in epoch {best['epoch']}."
    )
    section.pictures = [
        picture(
            lambda: _with_legend_below(learning_curve(run.history, loss="error")),
            f"Learning curve: training error {run.history[0]['training_loss']:.5f} to "
            f"{run.history[-1]['training_loss']:.5f}, best validation error "
            f"{best['validation_loss']:.5f} in epoch {best['epoch']}.",
            "Learning curve",
        )
    ]
    return section
