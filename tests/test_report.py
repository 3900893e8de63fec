"""python -m eval.report: what a page holds, hostile names, its size, bad folders, real browsers."""

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from eval import clips, report, runfiles, testsets, views
from eval.figures import Picture, plain
from tests import report_files as files
from tests.builders import BROWSER, needs_browser, wait_in, write_sound

pytest.importorskip("jinja2")

PICKED = "birds/S1/0db/U1.wav"
VOID = {"meta", "link", "img", "source", "br", "rect"}


class Tree(HTMLParser):
    """Elements as (tag, attributes, text), and whether every one was closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, **wanted):
        return [
            (attributes, text)
            for name, attributes, text in self.elements
            if name == tag and all(attributes.get(key) == v for key, v in wanted.items())
        ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    demo = files.training_run(root / "demo<b>")
    return [
        demo,
        files.evaluation_run(root / "eval"),
        files.sweep_run(root / "sweep"),
        files.selection_run(root / "select", demo, [PICKED]),
        files.experiment_run(root / "mnn"),
    ]


def scored(tasks, _jobs, metrics):
    return [{"name": task.name} | dict.fromkeys(metrics, 3.21) for task in tasks]


def blank(_draw, alt, caption):
    sources = {(w, t): "data:," for w in ("wide", "narrow") for t in ("light", "dark")}
    return Picture(sources, alt, caption)


def make(out, runs, *more, figures=False):
    """Runs the command without computing a score; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.listening.scoring.score_all", scored)
        if not figures:
            patch.setattr("eval.page.picture", blank)
        return report.main([*map(str, runs), "-o", str(out), *more])


def test_one_call_does_what_the_command_does(folders, tmp_path, monkeypatch, capsys):
    assert make(tmp_path / "command", folders) == 0
    monkeypatch.setattr("eval.listening.scoring.score_all", scored)
    monkeypatch.setattr("eval.page.picture", blank)
    capsys.readouterr()
    found = report.write_report(report.ReportConfig(tuple(folders), tmp_path / "call"))
    assert capsys.readouterr().out == "" and found.num_runs == len(folders)
    assert found.path.read_bytes() == (tmp_path / "command" / "index.html").read_bytes()


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    assert make(out, folders, "--title", "A & <b>", figures=True) == 0
    return out / "index.html"


@pytest.fixture(scope="module")
def tree(page):
    return Tree(page.read_text(encoding="utf-8"))


def test_the_page_asks_nothing_of_anyone(tree):
    addresses = [
        value
        for _, attributes, _ in tree.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "poster", "data", "action")
    ]
    assert len(addresses) > 50
    assert {re.split("[:,]", address)[0][:4] for address in addresses} <= {"data", "#mai"} | {
        address[:4] for address in addresses if address.startswith("#")
    }
    style = tree.all("style")[0][1]
    assert "url(" not in style and "@import" not in style
    ((policy, _),) = tree.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")


def test_only_our_script_may_run(tree, page):
    ((_, script),) = tree.all("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.read_text()
    for _, attributes, _ in tree.elements:
        assert not [name for name in attributes if name.startswith("on")]
    assert not tree.all("b", **{"class": "x"})
    assert tree.all("title")[0][1] == "A & <b>"
    assert any(files.EVIL in text for _, text in tree.all("code"))


def test_it_can_be_read_without_eyes_or_mouse(tree):
    assert tree.all("html")[0][0]["lang"] == "en"
    assert "width=device-width" in tree.all("meta", name="viewport")[0][0]["content"]
    ids = [attributes["id"] for _, attributes, _ in tree.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes, _ in tree.all("img"):
        assert len(attributes["alt"]) > 20
    for attributes, _ in tree.all("audio"):
        assert attributes["aria-labelledby"] in ids and "controls" in attributes
    for attributes, _ in tree.all("a"):
        assert attributes["href"][1:] in ids
    headings = [int(tag[1]) for tag, _, _ in tree.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(headings, headings[1:], strict=False))
    num_columns = len(tree.all("th", scope="col"))
    assert num_columns == len([a for a, _ in tree.all("th") if a.get("aria-sort") == "none"])
    assert num_columns == len(tree.all("button", type="button")) > 20


def test_runs_of_the_same_noisy_files_stand_side_by_side(tree):
    titles = [text for _, text in tree.all("h2")]
    assert titles == [
        "Scores: demo<b>, eval, sweep", "Selection among experts: select", "Experiment: mnn",
        "Training: demo<b>", "Runs",
    ]  # fmt: skip
    rows = [text for _, text in tree.all("th", scope="row")]
    assert rows[:7] == ["noisy", "baseline", "pruned", "small", "fcn", "k16", "k4"]
    cells = {a["data-v"] for a, _ in tree.all("td") if "data-v" in a}
    for number in ("2000.0", "1000.0", "4000.0", "0.65", "16.0", "12.5", "9.5", "13.71"):
        assert number in cells
    table = files.rows(["enhanced"])
    mean = np.mean([row["pesq_wb"] for row in table if row["system"] == "enhanced"])
    assert any(float(v) == pytest.approx(mean, abs=1e-9) for v in cells)


def test_names_are_no_formulas_and_any_folder_has_one(tmp_path):
    from matplotlib.cbook import is_math_text

    assert is_math_text("$a$") and not is_math_text(plain("$a$"))
    assert not plain("_hidden").startswith("_")
    run = files.experiment_run(tmp_path / os.fsdecode(b"caf\xe9"))
    assert make(tmp_path / "out", [run]) == 0
    assert r"Experiment: caf\udce9" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_the_best_of_a_column_is_marked_and_noisy_never(tmp_path):
    run = files.evaluation_run(tmp_path / "eval", metrics=("pesq_wb", "stoi", "pesq_nb"))
    table = files.rows(["pruned", "small"], ("pesq_wb", "stoi", "pesq_nb"))
    for row in table:
        row["pesq_wb"] += 9 * (row["system"] == "noisy")
        row["stoi"] -= 0.5 * (row["system"] == "small")
    files.write_rows(run / "scores.csv", table)
    (own,) = testsets.join_runs(runfiles.read_runs([run]), None, None)
    shown = views.scores_table(own)
    assert not shown.note  # every file was scored
    heads = [name for name, _, _ in shown.columns]
    assert heads == ["system", "file", "PESQ-WB", "STOI", "n", "PESQ-NB"]
    marked = {row[0].text: [h for h, c in zip(heads, row, strict=True) if c.mark]
              for row in shown.rows}  # fmt: skip
    assert marked == {"noisy": [], "pruned": ["STOI"], "small": ["PESQ-WB", "PESQ-NB"]}


def test_clips_hold_every_version(tree):
    labels = [text for attributes, text in tree.all("h4") if "id" in attributes]
    first = labels[: labels.index("clean") + 1]
    assert first[0] == "noisy" and "baseline" in first
    place = labels.index("MNN choice")
    assert labels[place + 1] == "clean"
    assert "3.21" in [text.split()[0] for _, text in tree.all("dd")]  # scored for the page
    ((_, text),) = tree.all("li", **{"class": "picked"})
    assert "expert_birds" in text and "12.50" in text and "picked" in text
    tags = " ".join(text for a, text in tree.all("span") if "tag" in a.get("class", ""))
    for reason in ("best gain", "median gain", "worst gain", "typical of birds", "of rain"):
        assert reason in tags


def test_sounds_and_pictures_are_what_they_say(tree):
    sounds = [attributes["src"] for attributes, _ in tree.all("audio")]
    images = [a["src"] for a, _ in tree.all("img") if a["src"].startswith("data:image/png")]
    assert len(sounds) == len(images) > 20
    for sound in sounds:
        content = base64.b64decode(sound.removeprefix("data:audio/flac;base64,"))
        info = soundfile.info(io.BytesIO(content))
        assert (info.format, info.subtype, info.channels) == ("FLAC", "PCM_16", 1)
        assert (info.samplerate, info.frames) == (16000, 16000)
    for image in images[:5]:
        content = base64.b64decode(image.removeprefix("data:image/png;base64,"))
        assert content.startswith(b"\x89PNG")


def test_the_best_file_is_the_one_of_largest_gain():
    rows = files.rows(["a"])
    chosen = dict(clips.choose_clips(rows, "a", "pesq_wb", files.names()))
    assert chosen["rain/S1/10db/U2.wav"][0] == "best gain"
    assert chosen["birds/S1/0db/U1.wav"][0] == "worst gain"
    assert chosen["birds/S1/10db/U2.wav"][0] == "median gain"
    assert [reason for own in chosen.values() for reason in own if "typical" in reason] == [
        "typical of birds", "typical of rain",
    ]  # fmt: skip
    preferred = dict(
        clips.choose_clips(rows, "a", "pesq_wb", files.names(), ["rain/S1/0db/U1.wav"])
    )
    assert preferred["rain/S1/0db/U1.wav"] == ["typical of rain"]
    # Of a metric that is better when low the order turns round.
    low = [row | {"lsd": row["pesq_wb"]} for row in rows]
    turned = dict(clips.choose_clips(low, "a", "lsd", files.names()))
    assert turned["birds/S1/0db/U1.wav"][0] == "best gain"
    assert not clips.choose_clips(rows, "a", "pesq_wb", [])


def test_levels_do_not_depend_on_the_scale_of_a_system(rng):
    noisy = rng.standard_normal(4000)
    signals = {"noisy": noisy, "a": 0.7 * noisy, "b": 50 * noisy, "longer": np.tile(noisy, 2)}
    result = clips.levelled(signals | {"silent": np.zeros(10)})
    for name in ("a", "b", "longer"):
        np.testing.assert_allclose(result[name], result["noisy"], rtol=1e-9, atol=1e-12)
    assert not result["silent"].any() and len(result["silent"]) == 4000
    assert np.abs(result["noisy"]).max() == pytest.approx(clips.PEAK)


def test_a_tone_is_bright_where_it_sounds():
    from PIL import Image

    time_s = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 2000 * time_s) * (time_s >= 0.5)
    content = clips.spectrogram_png(tone, clips.top_level_db({"tone": tone}))
    image = np.asarray(Image.open(io.BytesIO(content)).convert("L"), int)
    height, width = image.shape
    assert height == 128
    assert abs(image[:, -20].argmax() - 0.75 * height) <= 1  # 2 of 8 kHz, from the top
    assert image[96, -20] > 200
    assert image[:, : width // 3].max() < 20


def test_a_selection_belongs_to_its_own_files_only(tmp_path):
    demo = files.training_run(tmp_path / "demo")
    same = files.selection_run(tmp_path / "same", demo, [PICKED])
    other = files.selection_run(tmp_path / "other", demo, [PICKED])
    rng = np.random.default_rng(5)
    write_sound(other / "noisy" / PICKED, rng.standard_normal(16000))  # same name, other sound
    runs = runfiles.read_runs([demo, same, other])
    sets = testsets.join_runs(runs, None, None)
    assert len(sets) == 2
    assert list(sets[0].choices) == [PICKED]
    assert sets[0].choices[PICKED][0].title == "same"
    assert sets[1].runs[0].title == "other" and not sets[1].summary


def test_choices_of_files_that_no_run_has_scored_are_heard_too(tmp_path):
    demo = files.training_run(tmp_path / "demo")
    others = ["rain/S1/0db/U1.wav", "rain/S1/0db/U2.wav"]
    run = files.selection_run(tmp_path / "select", demo, [PICKED, *others])
    for name in others:
        write_sound(run / "noisy" / name, np.random.default_rng(5).standard_normal(16000))
    sets = testsets.join_runs(runfiles.read_runs([demo, run]), None, None)
    assert [list(own.choices) for own in sets] == [[PICKED], others]
    assert list(sets[1].pairs) == others and not sets[1].notes


def test_other_noisy_files_are_another_table(tmp_path):
    runs = runfiles.read_runs(
        [files.evaluation_run(tmp_path / "a"), files.evaluation_run(tmp_path / "b", shift=0.5)]
    )
    sets = testsets.join_runs(runs, None, None)
    assert [own.labels for own in sets] == [["pruned", "small"]] * 2


def test_the_same_system_is_listed_once(tmp_path):
    one = files.evaluation_run(tmp_path / "a")
    two = files.evaluation_run(tmp_path / "b", metrics=("pesq_wb", "stoi", "pesq_nb"))
    (own,) = testsets.join_runs(runfiles.read_runs([one, two]), None, None)
    assert own.labels == ["pruned", "small"]
    three = files.evaluation_run(tmp_path / "c")
    table = files.rows(["pruned", "small"])
    for row in table:
        row["stoi"] += 0.1 * (row["system"] == "small")
    files.write_rows(three / "scores.csv", table)
    (own,) = testsets.join_runs(runfiles.read_runs([one, three]), None, None)
    assert own.labels == ["pruned", "small", "small (c)"]


def test_a_table_names_no_file_outside_its_folders(tmp_path):
    demo = files.training_run(tmp_path / "demo")
    secret = "../../secret.wav"
    write_sound(tmp_path / "secret.wav", np.ones(16000))
    table = [
        row | {"name": row["name"].replace(PICKED, secret)} for row in files.rows(["enhanced"])
    ]
    files.write_rows(demo / "scores.csv", table)
    (own,) = testsets.join_runs(runfiles.read_runs([demo]), None, None)
    assert secret in {row["name"] for row in own.rows}
    assert secret not in own.pairs and secret not in own.files["baseline"]
    assert len(own.pairs) == len(files.names()) - 1


def test_clips_are_left_out_rather_than_the_limit_broken(folders, tmp_path, capsys):
    # Noise does not compress: the clips need more than what is left beside the figures.
    assert make(tmp_path / "all", folders[1:2]) == 0
    whole = (tmp_path / "all" / "index.html").stat().st_size
    limit = round(whole / 1e6 - 0.4, 2)
    assert make(tmp_path / "less", folders[1:2], "--max-mb", str(limit)) == 0
    printed = capsys.readouterr()
    text = (tmp_path / "less" / "index.html").read_text()
    assert len(text.encode()) <= limit * 1e6
    (note,) = re.findall(r"\d of \d clips were left out[^<]*", text)
    assert note.split(":")[0] in printed.err
    assert 0 < text.count("<audio") < (tmp_path / "all" / "index.html").read_text().count("<audio")
    assert make(tmp_path / "none", folders[1:2], "--max-mb", "0.01") == 1
    assert "without any clip" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_without_audio_the_tables_remain(tmp_path, capsys):
    run = files.evaluation_run(tmp_path / "eval")
    shutil.move(run / "test", tmp_path / "elsewhere")
    assert make(tmp_path / "out", [run]) == 0
    assert "--noisy and --clean" in capsys.readouterr().err
    text = (tmp_path / "out" / "index.html").read_text()
    assert "<audio" not in text and "pruned" in text and "name theirs with" in text
    folder = tmp_path / "elsewhere"
    named = ["--noisy", str(folder / "noisy"), "--clean", str(folder / "clean")]
    assert make(tmp_path / "out", [run], *named) == 0
    assert "<audio" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: shutil.rmtree(run), "no such file or folder"),
        (lambda run: (run / "summary.json").unlink(), "holds no results"),
        (lambda run: (run / "summary.json").write_text("{"), "no JSON"),
        (lambda run: (run / "summary.json").write_text("[]"), "Expected `object`"),
        (lambda run: (run / "summary.json").write_text('{"systems": 3}'), "at `$.systems`"),
        (lambda run: (run / "scores.csv").write_text("a,b\n1,2\n"), "columns system"),
        (lambda run: (run / "scores.csv").write_bytes(b"\xff\xfe\x00"), "no table of scores"),
        (lambda run: (run / "scores.csv").unlink(), "scores.csv"),
    ],
)  # fmt: skip
def test_bad_folders_are_named_in_one_line(tmp_path, capsys, spoil, words):
    run = files.evaluation_run(tmp_path / "eval")
    spoil(run)
    assert make(tmp_path / "out", [run]) == 1
    error = capsys.readouterr().err
    assert words in error and "eval" in error and error.count("\n") == 1


_CHOICE = {"input": "a.wav", "scores": {"x": 1.0}}
_SELECTION = {"dae": "d.h5", "experts": [{"name": "x"}], "files": [_CHOICE], "picks": {"x": 1}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("summary.json", {"command": 5}),
        ("summary.json", {"systems": [{"name": ["a"]}]}),
        ("summary.json", {"systems": [{"source": "x"}]}),
        ("summary.json", {"systems": [{"name": "a", "sha256": "1", "file_bytes": "big"}]}),
        ("summary.json", {"folders": {"noisy": 5}}),
        ("sweep.json", {"table": [{"name": ["a"]}], "models": []}),
        ("sweep.json", {"models": {"a": 1}}),
        ("sweep.json", {"models": [{"name": "a", "labels": {"k": [1]}}]}),
        ("results.json", {"experiment": "snr", "table": 5}),
        ("results.json", {"experiment": "snr", "confusion": {"a": 5}}),
        ("results.json", {"experiment": "snr", "experts": 5}),
        ("results.json", {"experiment": "snr", "published": {"sdr": {"rows": {"a": 5}}}}),
        ("results.json", {"experiment": "snr", "published": {"sdr": {"experts": 5}}}),
        ("results.json", {"model_sha256": "x", "model": 5}),
        ("x.json", _SELECTION | {"experts": 5}),
        ("x.json", _SELECTION | {"picks": {"x": [1]}}),
        ("x.json", _SELECTION | {"files": [_CHOICE | {"scores": {"x": "1"}}]}),
        ("x.json", _SELECTION | {"files": [_CHOICE | {"segments": [{"start_s": "x"}]}]}),
        ("x.json", _SELECTION | {"files": [_CHOICE | {"segments": [{"pick": ["x"]}]}]}),
        ("x.json", _SELECTION | {"files": [5]}),
    ],
)  # fmt: skip
def test_malformed_results_are_one_line(name, value, tmp_path):
    path = tmp_path / "run" / name
    files.write_json(path, value)
    with pytest.raises(ValueError, match=r"malformed \(.* - at `\$\.") as caught:
        runfiles.read_runs([tmp_path / "run"])
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and said.isprintable() and len(said) < 500


@pytest.mark.parametrize("epoch", ["inf", "nan", "1e999"])
def test_a_history_counts_epochs(epoch, tmp_path):
    text = f"epoch,training_loss,validation_loss\n{epoch},0.2,0.1\n"
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(ValueError, match=r"history\.csv: is no history of a training"):
        runfiles.read_runs([tmp_path])


def test_a_selection_that_is_none(tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"dae": 1, "experts": [], "files": [{"input": 3}], "picks": {}}))
    assert make(tmp_path / "out", [path]) == 1
    assert "at `$.files[0].input`" in capsys.readouterr().err


def test_a_missing_package_is_said(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert make(tmp_path, folders[:1]) == 1
    assert "pip install jinja2" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------
# A real browser


@contextlib.contextmanager
def opened(page, **options):
    """Yields (browser page, what went wrong)."""
    from playwright.sync_api import sync_playwright

    troubles = []
    with sync_playwright() as player:
        browser = player.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        tab = browser.new_context(**options).new_page()
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("dialog", lambda dialog: troubles.append(dialog.message))
        tab.on(
            "request",
            lambda r: None if r.url.startswith(("data:", "file:")) else troubles.append(r.url),
        )
        tab.goto(page.as_uri())
        yield tab, troubles
        browser.close()


@needs_browser
def test_in_a_browser(page):
    pytest.importorskip("playwright")
    with opened(page, viewport={"width": 390, "height": 800}, color_scheme="dark") as found:
        tab, troubles = found
        wait_in(tab, "[...document.querySelectorAll('audio')].every(a => a.duration > 0)")
        durations = tab.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
        assert durations == pytest.approx([1.0] * len(durations), abs=1e-3)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 18, 23)"
        loaded = "[...document.querySelectorAll('img')].every(i => i.naturalWidth > 0)"
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        wait_in(tab, loaded)

        heading = tab.locator("table thead th").filter(has_text="PESQ-WB").first
        cells = "t => [...t.tBodies[0].rows].map(r => Number(r.cells[COLUMN].dataset.v))"
        column = heading.evaluate("h => h.cellIndex")
        table = tab.locator("table").first
        heading.locator("button").click()
        values = table.evaluate(cells.replace("COLUMN", str(column)))
        assert heading.get_attribute("aria-sort") == "descending"
        assert len(set(values)) > 2 and values == sorted(values, reverse=True)
        tab.keyboard.press("Enter")  # the button has the focus
        values = table.evaluate(cells.replace("COLUMN", str(column)))
        assert heading.get_attribute("aria-sort") == "ascending" and values == sorted(values)

        # The table goes on to the right, and shows that until one is there.
        first = "document.querySelector('.scroll')"
        wait_in(tab, f"{first}.classList.contains('goes-on')")
        tab.evaluate(f"{first}.scrollLeft = 9999")
        wait_in(tab, f"!{first}.classList.contains('goes-on')")
        left = "document.querySelector('thead th').getBoundingClientRect().left"
        assert tab.evaluate(f"{left} == {first}.getBoundingClientRect().left")

        # One player at a time; the next one of the clip goes on at the same place.
        tab.evaluate(
            "() => { const [a, b] = document.querySelectorAll('audio');"
            "a.currentTime = 0.5; return a.play().then(() => b.play()); }"
        )
        wait_in(
            tab,
            "(() => { const [a, b] = document.querySelectorAll('audio');"
            "return a.paused && b.currentTime > 0.5; })()",
        )
        assert tab.evaluate("!document.querySelectorAll('.head')[1].hidden")
        assert not troubles


@needs_browser
def test_the_browser_test_sees_trouble(page, tmp_path):
    pytest.importorskip("playwright")
    broken = tmp_path / "broken.html"
    text = page.read_text().replace("</main>", "<img src=https://example.invalid/x.png></main>")
    broken.write_text(text)
    with opened(broken) as (tab, troubles):
        tab.wait_for_load_state()
        tab.wait_for_timeout(200)
    assert any("Content Security Policy" in trouble for trouble in troubles)
