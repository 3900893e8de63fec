"""What comes from files reaches a terminal, a table, Markdown or a page as plain text only."""

import csv
import io
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval import scoring, tables
from eval.runfiles import read_scores
from speech.base import cli, words
from speech.base.files import write_text
from tests import report_files

ROOT = Path(__file__).parent.parent

#: Clears a terminal, sets its title, turns text around, ends a line.
EVIL = "a\x1b[2J\x1b]0;x\x07\u202egpj\x9b31m\rb\x00\x7f\u2028c"


def is_plain(text):
    return all(char.isprintable() or char in "\n\t" for char in text)


def test_text_is_shown_with_escapes_and_cut():
    assert words.shown(EVIL).isprintable() and words.shown(EVIL).startswith(r"a\x1b[2J")
    assert words.shown("Gruß, 録音.wav") == "Gruß, 録音.wav"
    assert words.shown("a\tb", keep="\t") == "a\tb" and words.shown("a\tb") == r"a\tb"
    for text in ("x" * 10_000, "\x1b" * 10_000, "ab" * 501):
        cut = words.shown(text, 1000)
        assert len(cut) == 1000 and " ... " in cut and cut.isprintable()
    assert words.shown("x" * 1000, 1000) == "x" * 1000
    ends = words.shown("first" + "x" * 10**7 + "last", 100)
    assert ends.startswith("first") and ends.endswith("last")


def test_a_gigabyte_is_cut_before_it_is_looked_at():
    text, start = "\x1b" * 10**8, time.process_time()
    assert len(words.shown(text, 1000)) == 1000
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+x", "-x", "@x", "'=x", "''@x", "＝x", "=cmd|' /C calc'!A0", "-5/babble/x.wav", "'x",
     "x", "", "-5", "+1e3", "-inf", "'-5", "a=b", "Gruß"],
)  # fmt: skip
def test_cells_are_no_formulas_and_come_back(text):
    cell = words.csv_cell(text)
    assert words.from_cell(cell) == text or text == "'-5"
    if cell[:1] in "=+-@＝" and cell:
        float(cell)


def test_cells_hold_neither_controls_nor_megabytes():
    for text in (EVIL, "\t=1", "\r=1", "\n=1", "=" * 10**6):
        cell = words.csv_cell(text)
        assert cell.isprintable() and len(cell) <= words.MOST + 1
        assert cell[0] not in "=+-@\t\r\n"
    assert words.csv_cell(1.5) == 1.5 and words.csv_cell(None) is None


def test_tables_of_scores_hold_the_names_as_text(tmp_path):
    table = report_files.rows(["fcn"])
    for row in table:
        row["noise"] = "=HYPERLINK(1)"
        row["name"] = "@" + row["name"]
        row["status"] = "ok"
    table[0]["status"] = "-" + EVIL
    text = scoring.to_csv(table)
    assert is_plain(text)
    cells = [cell for line in csv.reader(io.StringIO(text)) for cell in line]
    assert not [cell for cell in cells if cell[:1] in ("=", "@", "\t", "+")]
    path = tmp_path / "scores.csv"
    write_text(path, text)
    found = read_scores(path)
    assert [row["name"] for row in found] == [row["name"] for row in table]
    assert {row["noise"] for row in found} == {"=HYPERLINK(1)"}


def test_markdown_holds_no_markup():
    rows = report_files.rows(["fcn"])
    for row in rows:
        row["noise"] = "<img src=x onerror=a()>|[x](javascript:a())\x1b[2J\n# b"
    rows[0] |= {"status": "`x`|y" + "z" * 10**5, "pesq_wb": float("nan")}
    summary = scoring.summarize(rows)
    unscored = [row for row in rows if row["status"] != "ok"]
    text = tables.markdown("t", summary, scoring.compare(rows), unscored, 8)
    assert is_plain(text) and len(text) < 20_000
    assert "\\<img" in text and "\\[x\\]" in text and "\\`x\\`\\|y" in text
    assert all(line.startswith("# t") for line in text.splitlines() if line.startswith("# "))
    columns = {line.replace("\\|", "").count("|") for line in text.split("## ")[1].splitlines()[2:]}
    assert len(columns - {0}) == 1


@pytest.mark.parametrize("name", [EVIL, "x" * 10**6], ids=["controls", "long"])
def test_the_report_shows_words_as_words(name, tmp_path):
    from eval import page
    from eval.runfiles import Run

    run = Run(tmp_path, "training", name, {"git_commit": name, "command": [name]})
    section = page.Section("part1", name, lead=name, notes=[name])
    html = page.render(page.Page("t", [section], [run], [name]), 10**6)
    assert is_plain(html) and len(html) < 100_000
    assert "a\\x1b[2J" in html or " ... " in html


def test_what_a_command_prints_is_text(capsys):
    def command():
        print(EVIL, "ok\ttab")
        print("x" * 10**6, file=sys.stderr)
        print("one\ntwo")
        sys.stdout.writelines(["\x1b\n"])
        logging.getLogger("speech").warning("said %s", EVIL)
        raise ValueError(EVIL + "y" * 10**6)

    cli.log_to_stderr()
    before = sys.stdout, sys.stderr
    assert cli.run(command) == 1
    assert (sys.stdout, sys.stderr) == before
    out, error = capsys.readouterr()
    assert is_plain(out) and is_plain(error)
    assert "\ttab\n" in out and "one\ntwo\n" in out and "\\x1b\n" in out
    assert len(error) < 3 * cli.MAX_LINE
    last = error.splitlines()[-1]
    assert last.startswith("error: a\\x1b[2J") and len(last) <= words.MOST + len("error: ")


def test_what_a_command_prints_still_reaches_files_and_pipes():
    code = (
        "import sys; from speech.base import cli\n"
        "def command():\n"
        "    sys.stdout.flush(); assert sys.stdout.fileno() == 1 and not sys.stdout.isatty()\n"
        "    print('\\x1b[2J', sys.stdout.encoding); sys.stdout.buffer.write(b'')\n"
        "    return cli.run(lambda: 0)\n"
        "sys.exit(cli.run(command))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONIOENCODING": "utf-8"})  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\x1b[2J utf-8\n", "")


def test_a_name_of_two_lines_is_no_second_line(tmp_path, rng, capsys):
    import soundfile

    from eval import run
    from tests.builders import make_speech

    for folder in ("clean", "noisy"):
        for name in ("hum\nerror: x/a\nskipped: y.wav", "b.wav"):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            samples = make_speech(rng, 8000)
            soundfile.write(path, samples if folder == "clean" else 0 * samples, 16000)
    words_of = ["--clean", str(tmp_path / "clean"), "--noisy", str(tmp_path / "noisy")]
    more = ["--metrics", "si_sdr", "--jobs", "1", "-o", str(tmp_path / "out")]
    assert run.main([*words_of, *more]) == 1  # silence has no score
    out, error = capsys.readouterr()
    lines = (out + error).splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    assert not [line for line in lines if line.startswith(("error: x", "skipped: y"))]
    assert any("\\nskipped: y" in line for line in lines)
