"""What every command shares: one-line errors, help with examples, options alike everywhere."""

import argparse
import errno
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from speech.base import cli

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two\nlines"), "error: two lines"),
        (
            OSError(28, "No space left on device", "x"),
            "error: x: No space left on device; make room and repeat the command: it goes on",
        ),
        (
            OSError(13, "Permission denied", "x.wav"),
            "error: x.wav: Permission denied; choose another place, or get access to this one",
        ),
        (
            FileExistsError(17, "File exists", "x.wav"),
            "error: x.wav: a file stands where a folder is needed; choose another place",
        ),
        (FileNotFoundError(2, "no such model file", "m.h5"), "error: m.h5: no such model file"),
        (MemoryError(), "error: not enough memory"),
    ],
)
def test_expected_errors_are_one_line(error, message, capsys):
    def command():
        raise error

    assert cli.run(command) == 1
    assert capsys.readouterr().err.strip() == message


def test_ctrl_c_is_one_line_and_the_exit_code_of_shells(capsys):
    def command():
        raise KeyboardInterrupt

    assert cli.run(command) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_stream_is_no_trap(number, tmp_path):
    code = (
        "import os, sys\n"
        f"os.close({number}); sys.std{('in', 'out', 'err')[number]} = None\n"
        "from speech.base import cli\n"
        "def command():\n"
        "    file = open(sys.argv[1], 'wb')\n"
        "    assert file.fileno() > 2\n"
        "    sys.stdout.flush(), sys.stderr.flush(), sys.stdin.read()\n"
        "    assert all(map(os.get_inheritable, range(3)))\n"
        "    print('said'); print('complained', file=sys.stderr)\n"
        "    return 0\n"
        "sys.exit(cli.run(command))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(
        arguments, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout == ("" if number == 1 else "said\n")
    assert done.stderr == ("" if number == 2 else "complained\n")


def _asks_its_signals(_):
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks here")
def test_ctrl_c_is_left_to_the_process_that_started_the_others():
    code = (
        "import joblib; from speech.base import cli; from tests.test_cli import _asks_its_signals\n"
        "tasks = (joblib.delayed(_asks_its_signals)(i) for i in range(4))\n"
        "assert list(cli.in_processes(tasks, 2)) == [True] * 4\n"
        "assert not _asks_its_signals(0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_our_own_mistakes_keep_their_traceback():
    def command():
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        cli.run(command)


def test_a_reader_that_has_seen_enough_is_no_error():
    code = (
        "import sys; from speech.base import cli\n"
        "def command():\n"
        "    for _ in range(100000): print('x' * 100)\n"
        "    return 0\n"
        "sys.exit(cli.run(command))"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait() == 0
    writer.stderr.close()


def test_a_full_disk_is_told_in_plain_words():
    text = cli.one_line(OSError(errno.ENOSPC, "Can't write data (file write failed: buf = 0x5)"))
    assert text == "No space left on device; make room and repeat the command: it goes on"
    assert cli.one_line(OSError(errno.EFBIG, "x", "a.h5")).startswith("a.h5: File too large; make")


# --------------------------------------------------------------------------------------------
# Every command's own help


def command_modules():
    """Returns the modules that are commands with options: 'speech.enhance', 'timit_fcn_mse'."""
    folders = ("speech", "eval", "pruning", "quantization", "mnn")
    paths = [ROOT / "timit_fcn_mse.py", *(p for f in folders for p in (ROOT / f).rglob("*.py"))]
    found = [
        p for p in paths if "ArgumentParser(" in (text := p.read_text()) and "def main(" in text
    ]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found)


MODULES = command_modules()


class _GotParser(Exception):
    pass


def parsers_of(module, argv=()):
    """Yields (name, parser) of a command and of its subcommands."""

    def stop(parser, *_):
        raise _GotParser(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_GotParser) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        importlib.import_module(module).main(list(argv))
    yield from _with_subcommands(module, caught.value.args[0])


def _with_subcommands(name, parser):
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from _with_subcommands(f"{name} {word}", below)


def all_parsers():
    for module in MODULES:
        yield from parsers_of(module)
    yield from parsers_of("quantization.run", ["info"])


def check_usage(line, folder):
    """Parses a command line as the command does, usage errors included, without running it."""
    words = shlex.split(line, comments=True)
    assert words.pop(0) == "python", line
    name = words.pop(0)
    name = words.pop(0) if name == "-m" else name.removesuffix(".py")
    module = name if name in MODULES else f"{name}.__main__"
    (folder / "noisy").mkdir()  # a folder that is there is an input, wherever it stands
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(cli, "run", lambda command: 0)
        try:
            code = importlib.import_module(module).main(words)
        except SystemExit as exit:
            code = exit.code
    assert code == 0, line


def test_all_commands_are_found():
    assert len(MODULES) >= 19 and {"speech.enhance", "eval.run", "timit_fcn_mse"} < set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_help_ends_with_examples_that_are_right(module, tmp_path_factory):
    (_, parser), *_ = parsers_of(module)
    lines = parser.format_help().split("\nexamples:\n")[1].split("\n\n")[0].splitlines()
    assert lines
    own = module.removesuffix(".__main__")
    for line in lines:
        if module == "speech.stream":  # other programs of the pipe stand around it
            line = "  " + next(part for part in line.strip().split(" | ") if "python" in part)
        assert line.startswith((f"  python -m {own} ", f"  python {own}.py ")) or line == (
            f"  python -m {own}"
        )
        check_usage(line, tmp_path_factory.mktemp("example"))


def documented():
    """Yields (file, command line) of what the guides tell to type."""
    names = {module.removesuffix(".__main__") for module in MODULES}
    paths = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "models").glob("*.md")]
    for path in paths:
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ *(python (?:-m )?[\w.]+.*)$", text, re.MULTILINE):
            name = re.match(r"python (?:-m )?([\w.]+)", line)[1]
            # Square brackets and dots mean that something is left out.
            is_whole = not re.search(r"[\[<]|\.\.\.", line.split("#")[0])
            if name.removesuffix(".py") in names and is_whole:
                yield path.relative_to(ROOT), line


@pytest.mark.parametrize(("path", "line"), list(documented()), ids=str)
def test_what_the_guides_say_is_right(path, line, tmp_path):
    check_usage(line, tmp_path)


#: Options whose value has another form in some commands, and why.
FORMS_DIFFER = {
    "--out": "a file where one is written, else a folder",
    "--model": "with a name in front where several are compared",
    "--baseline": "a file among files, a name among named systems",
    "--models": "files to offer, or the folder of them all",
    "--k": "none: not quantized, in a sweep",
    "--theta": "none: not pruned, in a sweep",
    "--num-test": "0 for all, where not the bundled corpus alone is meant",
    "--score": "can be left out by --no-score where it is implied",
    "--split": "see below",
}

#: Options that mean something else in some commands, and why they keep their names.
MEANINGS_DIFFER = {
    "--out": "each writes something else",
    "--split": "speech.prepare: TRAIN or TEST; training: how validation is split off",
    "--models": "see above",
    "--format": "samples of WAVs, or of raw PCM",
    "--dask": "what is done there: mixing, or scoring",
    "--optimizer": "speech.train: the default follows from the network",
    "--batch-size": "utterances for the FCN, frames for the networks over frames",
}


def gist(text):
    """Returns the first words of a help text, without defaults and details."""
    return re.split(r"[(:;,\[]", text)[0].strip()


def options_by_name():
    """Returns option -> [(command, action)] of those that several commands have."""
    found = defaultdict(list)
    for name, parser in all_parsers():
        for action in parser._actions:
            for option in action.option_strings:
                if option.startswith("--") and option != "--help":
                    found[option].append((name, action))
    return {option: uses for option, uses in found.items() if len(uses) > 1}


SHARED = options_by_name()


@pytest.mark.parametrize("option", sorted(SHARED))
def test_the_same_option_means_the_same_everywhere(option):
    uses = SHARED[option]

    def table(what):
        return {name: what(action) for name, action in uses}

    forms = table(lambda action: (action.type, action.metavar, type(action)))
    if option not in FORMS_DIFFER:
        assert len(set(forms.values())) == 1, forms
    gists = table(lambda action: gist(action.help))
    if option not in MEANINGS_DIFFER:
        assert len(set(gists.values())) == 1, gists
    if option == "--out":
        assert {action.type for _, action in uses} == {Path}
        assert all("-o" in action.option_strings for _, action in uses), uses


def test_exceptions_are_still_needed():
    for option in {*FORMS_DIFFER, *MEANINGS_DIFFER}:
        assert option in SHARED, option


def test_a_number_of_processes():
    assert cli.num_jobs("0") == -1 and cli.num_jobs("3") == 3
    for text in ("1.5", "x"):
        with pytest.raises(ValueError):
            cli.num_jobs(text)


@pytest.mark.parametrize(
    "parse, text, wanted",
    [
        (cli.amount, "0", "'0' is not above 0"),
        (cli.amount, "-2.5", "'-2.5' is not above 0"),
        (cli.positive_number, "0", "'0' is below 1"),
        (cli.natural_number, "-3", "'-3' is below 0"),
        (cli.num_jobs, "-1", "'-1' is below 0"),
    ],
)
def test_a_number_out_of_range_is_told_the_range(parse, text, wanted, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--much", type=parse)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([f"--much={text}"])
    assert capsys.readouterr().err.strip().endswith(wanted)


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "x", "100.1", "-500"])
def test_no_ratio_in_decibels(text):
    with pytest.raises((ValueError, argparse.ArgumentTypeError)):
        cli.decibels(text)
    assert cli.decibels("-100") == -100 and cli.amount("1e6") == 1e6


def test_a_result_file_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "noisy.wav").write_text("sound")
    for name in ("noisy.wav", "results", "folder.json", "noisy.wav/results.json"):
        with pytest.raises(argparse.ArgumentTypeError, match=name):
            cli.json_file(str(tmp_path / name))
    assert cli.json_file(str(tmp_path / "new" / "results.json")).suffix == ".json"
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be written"):
        cli.json_file(str(tmp_path / "results.json"))


#: Files of these names, beside recordings, leave a mark when they are imported.
_PLANTED = ("soundfile", "numpy", "joblib", "pickle", "json", "scipy", "tensorflow", "speech")


@pytest.mark.parametrize(
    "code",
    [
        "from eval import isolation; import os; isolation.run_isolated(os.getpid)",
        "from speech.base import cli; import joblib, math\n"
        "list(cli.in_processes([joblib.delayed(math.sqrt)(4)] * 2, 2))",
        "from speech.base import recorded; from pathlib import Path\n"
        "recorded.run_recorded(['speech.enhance', '--help'], Path('r.json'), {})",
    ],
    ids=["isolation", "joblib", "grid"],
)
def test_children_run_no_module_of_the_working_folder(code, tmp_path):
    for name in _PLANTED:
        text = f"open({str(tmp_path / 'marker')!r}, 'a').write({name!r})\n"
        (tmp_path / f"{name}.py").write_text(text)
    # -P: a command that was installed; its own folder is on no path.
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "marker").exists(), (tmp_path / "marker").read_text()


def test_a_working_folder_on_the_path_stays_out_of_the_children(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = cli.python_environment(X="1")
    assert environment["X"] == environment["PYTHONSAFEPATH"] == "1"
    assert str(tmp_path) not in environment["PYTHONPATH"].split(os.pathsep)
    assert cli.python_command("-m", "x") == [sys.executable, "-P", "-m", "x"]
