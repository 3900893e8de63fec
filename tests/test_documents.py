"""What README, docs and model cards tell to type is understood, and runs on small files."""

import ast
import contextlib
import importlib
import importlib.util
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import pruning.run
from tests import mnn_files
from tests.builders import make_noises, make_speech, write_mask_network
from tests.reference import keras1_files
from tests.reference.sphere import write_sphere

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/*.md", "models/*.md")
    for path in sorted(ROOT.glob(pattern))
]
BUNDLED = ROOT / "speech/minicorpus"
OURS = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {
    path.stem for path in ROOT.glob("*.py")
}

#: What is no command of ours and needs no check.
ALLOWED = [r"\. \.venv/bin/activate", r"git clone \S+", r"cd [\w./-]+"]

#: Pattern of a command, behind what is exported to it, why it is not run here, and what does run
#: it, or the same on another scale. That it is understood is tested here.
NOT_RUN = {
    r"make (install|test)": ("sets up a .venv by pip", ".ci/run"),
    r"python -m speech\.opencorpus .*--stats": ("prints what the next one has built",
        "tests/test_opencorpus.py::test_stats_prints_the_tables_and_builds_nothing"),
    r"python -m speech\.opencorpus": ("downloads 1 GB",
        "tests/test_opencorpus.py::test_tree_is_read_as_timit_with_disjoint_speakers"),
    r"python -m tests\.hostile": ("takes more than a minute, as the test that makes its attacks",
        "tests/test_hostile.py::test_attacks_are_refused"),
    r"pip |dask |.*--dask tcp": ("needs several machines; the test has several workers",
        "tests/test_cluster.py::test_prepare_on_dying_workers_writes_the_same_bytes"),
    r"TF_CONFIG=": ("needs several machines; the test has several processes",
        "tests/test_distribution.py::test_two_machines_train_as_one_and_go_on_after_one_was_killed"),
}  # fmt: skip

#: Pattern of a command, and options behind it that leave it less to do. All that match are added.
LESS_WORK = {
    r"python timit_fcn_mse\.py|.*--(retrain|finetune-epochs)\b": "--num-train 4 --num-test 1 "
    "--crop-seconds 0.3 --jobs 1",
    r"(python timit_fcn_mse\.py|.*--(retrain|finetune-epochs)\b)(?!.*--train-noisy)": "--snr 5",
    r"python timit_fcn_mse\.py": "--epochs 1",
    r"python -m speech\.train": "--hours 0.002 --batch-size 2 --crop-seconds 0.3",
    r"python -m speech\.train(?!.*--init)": "--size small",
    r"python -m pruning\.run .*--retrain": "--stages 1 --retrain-epochs 1 --final-epochs 1 "
    "--no-score",
    r"python -m quantization\.run .*--finetune-epochs": "--finetune-epochs 1",
    r"python -m mnn\.train": "--iterations 5 --batch-size 50",
    r"python -m mnn\.experiments": "--scale small --noise-types birds typing",
    r"python -m eval\.(run|sweep)": "--jobs 1",
    r"python -m eval\.run(?!.*--clean)": "--num-test 1",
    r"python -m eval\.sweep": "--test-noisy C --test-clean D",
    r"python -m eval\.run": "--metrics stoi",
    r"python -m eval\.sweep .*--k": "--theta 0.65 --k none 16 --centroids fp16",
    r"python -m benchmarks\.rooms": "--num-test 1 --jobs 1",
    r"python -m benchmarks\.pool": "--timit TIMIT --noise corpus/noise --snr 5 --jobs 1",
    r"python -m benchmarks\.trials\.fuzz": "--inputs 20 --jobs 1",
    r"python -m speech\.demo": "--port 0",
}

#: Pattern of a command, and the package that it needs and that is not in requirements.txt.
NEEDS = {
    r".*--to onnx": "onnx",
    r".*--rooms|python -m benchmarks\.rooms": "pyroomacoustics",
    r"python -m eval\.report": "jinja2",
    r".*--check": "scalesim",
    r"python -m speech\.stream .*--device": "sounddevice",
    r".*--tensorboard": "tensorboard",
    r".*--dask": "dask",
}

#: Some time on a machine that is busy with other things.
TIMEOUT_S = 900


# --------------------------------------------------------------------------------------------
# What the documents show


@dataclass(frozen=True)
class Command:
    """A simple command of a document.

    Attributes:
        place: Document and line.
        words: What is typed, without [optional] parts; none if ``error``.
        longest: The same with the optional parts.
        exported: Environment variables that the lines above it in the block have set.
        in_block: Shown as a line to type, not within a sentence.
        error: Why it is not understood.
    """

    place: str
    words: tuple[str, ...] = ()
    longest: tuple[str, ...] = ()
    exported: tuple[tuple[str, str], ...] = ()
    in_block: bool = True
    error: str = ""

    def __str__(self):
        return " ".join([*(f"{name}={value}" for name, value in self.exported), *self.words])


def shown_lines(text):
    """Yields (line number, line, block) of what is shown to be typed, continuations joined.

    In blocks of shell, which are numbered from 1, that is all; in others, fenced or indented, what
    starts with a program, and the block is 0.
    """
    language, block, start, joined = None, 0, 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            language = line.strip("` ") if language is None else None
            block += language is not None
            continue
        is_shell = language in ("sh", "bash", "shell", "console")
        is_other = language == "" or (language is None and line.startswith("    "))
        if is_shell or joined or (is_other and re.match(r" *(python|make|pip) ", line)):
            start = start if joined else number
            joined += line
            if joined.endswith("\\"):
                joined = joined[:-1]
            else:
                yield start, joined, block if is_shell else 0
                joined = ""


def without_blocks(text):
    """Returns the text with fenced and indented lines empty."""
    text = re.sub(r"^ *```.*?^ *```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    return re.sub(r"^    .*$", "", text, flags=re.M)


def shown_spans(text):
    """Yields (line number, code) of code within sentences."""
    text = without_blocks(text)
    for match in re.finditer(r"`([^`]+)`", text):
        yield text.count("\n", 0, match.start()) + 1, " ".join(match[1].split())


def split(line, variables):
    """Returns the simple commands of a line as lists of words.

    What it assigns is noted in ``variables`` by name, what it exports by (name,).
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|<>()")
    lexer.whitespace_split = True
    commands = [[]]
    for word in lexer:
        variable = re.fullmatch(r"\$\{?(\w+)\}?", word)
        if word in ("&&", ";"):
            commands.append([])
        elif variable:
            commands[-1] += variables[variable[1]].split()
        elif word.strip("&;|<>()") and "$" not in word and "`" not in word:
            commands[-1].append(word)
        else:
            raise ValueError(f"{word} is not understood")
    assigned = re.compile(r"(export )?([A-Z_]+)=(.*)", re.DOTALL)
    for words in commands:
        if match := assigned.fullmatch(" ".join(words)):
            variables[(match[2],) if match[1] else match[2]] = match[3]
    return [words for words in commands if words and not assigned.fullmatch(" ".join(words))]


def spellings(line):
    """Returns a synopsis without its [optional] parts and with them, of a|b the first."""
    longest = re.sub(r"(\w+)(\|\w+)+", r"\1", re.sub(r"[][]|\.\.\.", " ", line))
    return re.sub(r"\[[^]]*\]|\.\.\.", " ", line), longest


def commands_of(document):
    """Returns the commands of a document, those within sentences behind those of blocks."""
    text = (ROOT / document).read_text("utf-8")
    found, variables, last = [], {}, 0
    for number, line, block in shown_lines(text):
        place = f"{document}:{number}"
        if block != last:
            variables, last = {k: v for k, v in variables.items() if isinstance(k, str)}, block
        try:
            both = [split(x, variables) for x in ((line, line) if block else spellings(line))]
        except (ValueError, KeyError) as error:
            found.append(Command(place, error=f"{line.strip()}: {error}"))
            continue
        exported = tuple((*k, v) for k, v in variables.items() if isinstance(k, tuple))
        for words, longest in zip(*both, strict=True):
            found.append(Command(place, tuple(words), tuple(longest), exported))
    variables = {}
    for number, code in shown_spans(text):
        if re.match(r'(python|make|pip install) |[A-Z]+="', code):
            for words in split(spellings(code)[1], variables):
                found.append(
                    Command(f"{document}:{number}", tuple(words), tuple(words), in_block=False)
                )
    return found


COMMANDS = [command for document in DOCUMENTS for command in commands_of(document)]


# --------------------------------------------------------------------------------------------
# Understood


def extras():
    """Returns the names of extras_require in setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    found = [node.value for node in ast.walk(tree)
             if isinstance(node, ast.keyword) and node.arg == "extras_require"]  # fmt: skip
    return set(ast.literal_eval(found[0]))


def import_command(name):
    """Returns the module of ``python -m NAME``; skips if a package of others is missing."""
    spec = importlib.util.find_spec(name)
    assert spec, f"there is no module {name}"
    try:
        return importlib.import_module(
            name if spec.submodule_search_locations is None else f"{name}.__main__"
        )
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] in OURS:
            raise
        pytest.skip(f"needs {error.name}")


def check_python(module, words, *, in_block, monkeypatch, capsys):
    """Lets the module parse the words; its work is not done."""
    assert module.split(".")[0] in OURS
    own = import_command(module)
    if module.startswith("tests."):
        assert not words
        return
    asked = []
    monkeypatch.setattr("speech.base.cli.run", lambda work: asked.append(work) or 0)
    if not words and not in_block:
        assert callable(own.main)
        return
    try:
        assert own.main(list(words)) == 0
        assert len(asked) == 1, "it did something else than to run"
    except SystemExit as ended:
        said = capsys.readouterr().err
        # A sentence may name an option alone, or with a letter for its value.
        only_part = re.search(r"arguments are required|invalid \w+ value: '[A-Z]+'", said)
        assert ended.code == 0 or (only_part and not in_block), said


def check(command, monkeypatch, capsys):
    """Fails if a command is not understood."""
    words = list(command.longest)
    options = {"in_block": command.in_block, "monkeypatch": monkeypatch, "capsys": capsys}
    assert not command.error
    if words[:2] == ["python", "-m"]:
        check_python(words[2], words[3:], **options)
    elif words[0] == "python":
        assert (ROOT / words[1]).suffix == ".py" and (ROOT / words[1]).exists()
        check_python(words[1].removesuffix(".py"), words[2:], **options)
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[:2] == ["pip", "install"]:
        names = [name for word in words for name in re.findall(r"\.\[([\w,-]+)\]", word)]
        assert set(",".join(names).split(",")) - {""} <= extras()
    elif words[0] == "dask":
        program = pytest.importorskip(f"distributed.cli.dask_{words[1]}")
        program.main.make_context(words[1], words[2:])
    else:
        assert any(re.fullmatch(pattern, str(command)) for pattern in ALLOWED)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_every_command_of_the_documents_is_understood(command, monkeypatch, capsys):
    try:
        check(command, monkeypatch, capsys)
    except AssertionError as error:
        pytest.fail(f"{command.place}: {command.error or command.longest}: {error}")


def test_commands_are_found():
    in_blocks = [str(command) for command in COMMANDS if command.in_block]
    assert "python -m speech.enhance noisy.wav -o clean.wav" in in_blocks
    assert any("--split TRAIN --snr -5 0 5 10" in line for line in in_blocks)  # a joined line
    text = (ROOT / "README.md").read_text("utf-8")
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
             for line in block.splitlines() if re.match(r"\w", line)]  # fmt: skip
    assert len([x for x in COMMANDS if x.in_block and x.place.startswith("README")]) >= len(lines)


def test_lines_are_split_as_a_shell_does():
    text = (
        'x\n```sh\nA="b c"\nmake d && python e $A \\\n  f  # g\n```\n'
        "    make h\n```\nmake [i]\n```\n"
    )
    lines = list(shown_lines(text))
    assert [(number, block) for number, _, block in lines] == [
        (3, 1), (4, 1), (7, 0), (9, 0)
    ]  # fmt: skip
    variables = {}
    found = [words for _, line, _ in lines for words in split(line, variables)]
    assert found[:2] == [["make", "d"], ["python", "e", "b", "c", "f"]]
    assert spellings("a b|c [d ...] e") == ("a b|c   e", "a b  d    e")
    for line, error in (("a | b", ValueError), ("a > b", ValueError), ("a $B", KeyError)):
        with pytest.raises(error):
            split(line, variables)


def test_what_is_not_run_here_runs_elsewhere():
    for _, place in NOT_RUN.values():
        path, _, name = place.partition("::")
        wanted = f"def {name}(" if name else "make test"
        assert wanted in (ROOT / path).read_text("utf-8"), place


@pytest.mark.parametrize("table", [NOT_RUN, LESS_WORK])
def test_each_row_of_the_tables_is_needed(table):
    lines = [str(command) for command in COMMANDS if command.in_block]
    for pattern in table:
        assert any(re.match(pattern, line) for line in lines), pattern


# --------------------------------------------------------------------------------------------
# Links


def anchors(text):
    """Returns the names that headings get."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, "RESULTS.md", "CONTRIBUTING.md"])
def test_links_and_pictures_are_there(document):
    path = ROOT / document
    text = re.sub(r"`[^`]*`", "", without_blocks(path.read_text("utf-8")))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    targets += re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    for target in targets:
        if not re.match(r"\w+:", target):
            name, _, anchor = target.partition("#")
            there = path.parent / name if name else path
            assert there.exists(), f"{document}: {target}"
            assert not anchor or anchor in anchors(there.read_text("utf-8")), target


def test_what_contributing_names_is_there():
    """Paths, those in a folder that is named before as they stand there, and names in the code."""
    text = without_blocks((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    paths = [
        word.replace("<name>", "*")
        for word in re.findall(r"`([^`\s]+)`", text)
        if re.fullmatch(r"[\w*<>-][\w*<>./-]*(/|\.py)", word)
    ]
    assert len(paths) > 40
    for path in paths:
        is_nested = "/" in path.rstrip("/")
        assert any(ROOT.glob(path)) or not is_nested and any(ROOT.glob(f"*/{path}")), path
    named = re.findall(r"`([\w/]+\.py)` \(([^|)]*`[^|)]*)\)", text)
    assert len(named) >= 8
    for path, remark in named:
        code = (ROOT / path).read_text("utf-8")
        for word in re.findall(r"`([\w.-]+)`", remark):
            for part in [word] if word.startswith("-") else word.split("."):
                assert part in code, f"{path}: {part}"


# --------------------------------------------------------------------------------------------
# Run


class Material:
    """Small files under the names that the documents use, made when a command first names one."""

    def __init__(self, tree):
        self.tree, self.rng = tree, np.random.default_rng(8)
        self.makers = {
            "noisy.wav": self._clip,
            "recordings": lambda path: [self._clip(path / f"{x}/{x}.wav") for x in "ab"],
            "model.json": self._keras1,
            "weights.hdf5": self._keras1,
            **dict.fromkeys(("a.icse", "b.icse"), mnn_files.write_fcn),
            **dict.fromkeys(("a.h5", "b.h5", "small.h5", "model.h5", "more.h5", "pq16.h5"),
                            mnn_files.write_fcn),
            "tf.h5": write_mask_network,
            **dict.fromkeys(("data/TIMIT", "TIMIT", "corpus/speech"), self._timit),
            **dict.fromkeys(("data/noises", "NOISES", "noises"),
                            lambda path: make_noises(path, self.rng)),
            "corpus/noise": self._noises,
            # C is noisy in one command and clean in another one.
            **dict.fromkeys(("A", "B", "C", "D", "N", "W", "noisy", "FOLDER"), self._pairs),
        }  # fmt: skip

    def lay_out(self, words):
        """Makes what the words name and is not there, but for what is to be written."""
        for before, word in zip(["", *words], words, strict=False):
            name = word.rpartition("=")[2] if ",theta" not in word else word.split("=")[1]
            path = self.tree / name.split(",")[0]
            if before not in ("-o", "--out", "--json") and not path.exists():
                make = self.makers.get(path.relative_to(self.tree).as_posix())
                if make:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    make(path)

    def _clip(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_speech(self.rng, 16000), 16000)

    def _timit(self, path):
        for split in ("TRAIN", "TEST"):
            for speaker in sorted((BUNDLED / "speech" / split).glob("*/[FM]*"))[:2]:
                for utterance in sorted(speaker.glob("*.flac"))[:2]:
                    name = utterance.relative_to(BUNDLED / "speech").with_suffix(".WAV")
                    write_sphere(path / name, soundfile.read(utterance)[0])

    def _noises(self, path):
        for kind in ("birds", "rain"):
            for source in (BUNDLED / "noise").rglob(f"*{kind}*"):
                target = path / source.relative_to(BUNDLED / "noise")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)

    def _pairs(self, path):
        for speaker in ("FAKS0", "MABW0"):
            for snr_db in (0, 5):
                self._clip(path / f"birds/{speaker}/{snr_db}db/{speaker}_SX37_{snr_db}.wav")

    def _keras1(self, path):
        network = keras1_files.random_network(self.rng)
        keras1_files.write_json(path.parent / "model.json", *network)
        keras1_files.write_weights(path.parent / "weights.hdf5", *network)


def shown_outputs(document):
    """Yields (line number, command, lines) of what a command of the block above it prints."""
    text = (ROOT / document).read_text("utf-8")
    says = r"command\s+above\s+prints[^`\n]* \(lines left out at `\.\.\.`\):\s+```\n(.*?)^```"
    for match in re.finditer(says, text, re.MULTILINE | re.DOTALL):
        number = text.count("\n", 0, match.start()) + 1
        above = [(start, block) for start, _, block in shown_lines(text) if start < number]
        first = min(start for start, block in above if block == above[-1][1])
        place = f"{document}:{first}"
        yield number, next(x for x in COMMANDS if x.place == place), match[1]


def copy_of_the_tree(folder):
    """Copies the code, the models and the documents, so that nothing is written beside them."""
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
        elif (path / "__init__.py").exists() or path.name == "docs":
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def with_few_filters(folder):
    """Lets the large model of a copy have 6 filters a layer."""
    model, smaller = folder / "models/fcn.h5", folder / "smaller.h5"
    assert pruning.run.main([str(model), "-o", str(smaller), "--remove-filters", "0.8"]) == 0
    smaller.replace(model)
    return folder


def run(words, folder):
    """Runs a command and returns (exit code, what it said)."""
    assert words[0] == "python", words
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def run_server(words, folder):
    """Starts a server, fetches its page, interrupts it; returns (exit code, what it said)."""
    with subprocess.Popen(
        [sys.executable, *words[1:]], cwd=folder,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as server:  # fmt: skip
        said = ""
        try:
            while not (url := re.search(r"http://\S+", said)):
                line = server.stdout.readline()
                if not line:
                    return server.wait(60), said
                said += line
            with contextlib.closing(urllib.request.urlopen(url[0], timeout=60)) as page:
                assert b"<html" in page.read()
            server.send_signal(signal.SIGINT)
            said += server.communicate(timeout=60)[0]
        finally:
            server.kill()
    return server.returncode, said


def without_make(words):
    """Returns what ``make`` runs first once all is set up; other commands as they are."""
    if words[0] != "make":
        return words
    rule = rf"^{words[1]}:.*\n\t\$\(BIN\)/(.*)\n"
    return shlex.split(re.search(rule, (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)[1])


def to_run(document):
    """Yields the commands of blocks that can be run, with less to do; none that stood earlier."""
    seen = set()
    for command in COMMANDS:
        line = str(command)
        if line in seen:
            continue
        is_shown = command.place.startswith(f"{document}:") and command.in_block
        if is_shown and not any(re.match(pattern, line) for pattern in (*NOT_RUN, *ALLOWED)):
            # What lies outside of the copy is looked for inside of it.
            words = [re.sub(r"^/", "", word) for word in without_make(command.words)]
            plain = str(replace(command, words=tuple(words)))
            less = " ".join(x for pattern, x in LESS_WORK.items() if re.match(pattern, plain))
            yield replace(command, words=(*words, *less.split()))
        if command.in_block:
            seen.add(line)


@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if any(to_run(name))])
def test_every_command_of_the_documents_runs(document, tmp_path):
    folder = with_few_filters(copy_of_the_tree(tmp_path))
    material, wrong = Material(folder), []
    for command in to_run(document):
        assert not command.error, command.error
        needed = [package for pattern, package in NEEDS.items() if re.match(pattern, str(command))]
        if all(importlib.util.find_spec(package) for package in needed):
            material.lay_out(command.words)
            runner = run_server if "speech.demo" in command.words else run
            start = time.perf_counter()
            code, said = runner(command.words, folder)
            print(f"{time.perf_counter() - start:6.1f} s  {command}")
            if code or "Traceback" in said:
                wrong.append(f"{command.place}: exit code {code}\n{command}\n{said[-2000:]}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "command", "shown"),
    [(f"{name}:{number}", *rest) for name in DOCUMENTS for number, *rest in shown_outputs(name)],
)
def test_commands_print_what_is_shown(place, command, shown, tmp_path):
    code, said = run(command.words, copy_of_the_tree(tmp_path))
    parts = [re.escape(part) for part in re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE)]
    assert not code and re.fullmatch("(.*\n)?".join(parts), said, re.DOTALL), f"{place}:\n{said}"


def test_outputs_are_found():
    found = [str(command) for name in DOCUMENTS for _, command, _ in shown_outputs(name)]
    assert found == [
        "python -m pruning.run models/fcn.h5",
        "python -m quantization.run models/fcn.h5 -k 16",
        "python -m mnn.select",
    ]


def test_the_release_is_the_same_everywhere():
    version = re.search(r'version="(.+)"', (ROOT / "setup.py").read_text())[1]
    number, date = re.search(
        r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    ).groups()
    citation = (ROOT / "CITATION.cff").read_text()
    assert number == version and f"version: {version}\ndate-released: {date}\n" in citation


def test_the_table_of_shipped_models_has_them_all_and_they_stay_small():
    files = [path for path in (ROOT / "models").iterdir() if path.suffix in (".h5", ".icse")]
    table = (ROOT / "models/README.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in re.findall(r"`(\w+\.(?:h5|icse))`", row)}
    kept = {path.name for path in files if not re.match(r"fcn_p[pq]", path.name)}
    assert {name for name in named if not re.match(r"fcn_p[pq]|_k", name)} == kept
    for name in kept:
        row = next(row for row in rows if f"`{name}`" in row)
        assert f"{(ROOT / 'models' / name).stat().st_size:,}" in row, name
    assert sum(path.stat().st_size for path in files) <= 8e6
