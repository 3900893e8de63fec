"""The rooms of the house: who may import whom, no arrow upward, no circle; imports do no work."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("speech", "pruning", "quantization", "mnn", "eval", "benchmarks")
MAY_IMPORT = {
    "speech": set(),
    "pruning": {"speech"},
    "quantization": {"speech"},
    "mnn": {"speech"},
    "eval": {"speech"},
    "benchmarks": {"speech", "pruning", "quantization", "mnn", "eval"},
}
#: Commands that print scores of what they made; no module but the command itself.
ALSO = {
    "mnn/experiments.py": {"eval"},
    "mnn/tables.py": {"eval"},
    "pruning/run.py": {"eval"},
    "quantization/run.py": {"eval"},
}
#: Rooms of speech/ from the ground up; what stands in speech/ itself is the doors, on top of all.
FLOORS = ("base", "sound", "modelfile", "net", "data", "training")


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path
    for path in (ROOT / "timit_fcn_mse.py", *(p for r in ROOMS for p in (ROOT / r).rglob("*.py")))
}


def imported(path):
    """Yields the full names that a file imports anywhere, modules as modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module or ""


def floor(module):
    """Returns the floor of a module of speech/."""
    room = module.split(".")[1] if "." in module else ""
    return FLOORS.index(room) if room in FLOORS else len(FLOORS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_rooms_import_only_what_they_may(name):
    path = MODULES[name]
    room = name.split(".")[0]
    allowed = MAY_IMPORT.get(room, set(ROOMS)) | ALSO.get(path.relative_to(ROOT).as_posix(), set())
    for other in imported(path):
        head = other.split(".")[0]
        if head in ROOMS and head != room:
            assert head in allowed, f"{path} imports {other}"
        if head == room == "speech":
            assert floor(other) <= floor(name), f"{path} imports {other}, which stands above it"
        if path.name not in ("tfmot_bridge.py", "tfmot_worker.py"):
            assert head != "tf_keras", f"{path} imports tf_keras"
        assert not other.startswith("tensorflow.keras"), f"{path} imports tf.keras"


#: Below the doors, where options become frozen values.
PARSE = {"speech.base.cli", "speech.training.common_options", "speech.training.options"}


def test_options_end_at_the_door():
    for name, path in MODULES.items():
        rooms = tuple(f"speech.{room}." for room in FLOORS) + ("pruning.", "quantization.")
        if name.startswith(rooms) and not name.endswith(".run") and name not in PARSE:
            assert "argparse" not in imported(path), f"{path} knows of options"


def circle(arrows):
    """Returns a circle of a graph, [] if there is none."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        found = next(filter(None, map(visit, sorted(arrows[node]))), [])
        path.pop()
        done.add(node)
        return found

    return next(filter(None, map(visit, sorted(arrows))), [])


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b"}, "b": {"b"}}) == ["b", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_itself_directly_or_by_way_of_others():
    arrows = {name: {*imported(path)} & MODULES.keys() for name, path in MODULES.items()}
    found = circle(arrows)
    assert not found, " -> ".join(found)


def test_no_test_file_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                assert not name.startswith("tests.test_"), (
                    f"{path} imports {name}; move what both need to tests/builders.py"
                )


def test_each_room_says_what_it_holds():
    for room in FLOORS:
        text = (ROOT / "speech" / room / "__init__.py").read_text()
        assert len(text.splitlines()) == 1 and "Imports" in text, room
    assert {path.name for path in (ROOT / "speech").iterdir() if path.is_dir()} <= {
        *FLOORS, "minicorpus", "opencorpus", "templates", "__pycache__"
    }  # fmt: skip


@pytest.mark.parametrize(
    "module",
    ["speech.sound.audio", "speech.sound.audiofiles", "speech.sound.augment", "speech.data.corpus",
     "speech.data.prefetch", "speech.demo",
     "speech.doctor",
     "speech.enhance", "speech.net.fcn", "speech.net.losses", "speech.sound.mixing",
     "speech.modelfile", "speech.net.enhancer", "speech.net.mask_enhancer", "speech.net.folding",
     "speech.net.keras_models", "speech.net.reach", "speech.net.plan",
     "speech.net.streaming", "speech.stream", "speech.net.chain", "speech.opencorpus",
     "speech.training.common_options", "speech.prepare", "speech.training.tensorboard",
     "speech.train", "speech.training.config", "speech.training.options", "speech.weights",
     "eval.cost", "eval.cycles", "eval.metrics", "eval.page", "eval.report", "eval.run",
     "eval.scoring", "eval.sweep", "mnn.arbiter", "mnn.config", "mnn.expert_files",
     "mnn.experiments", "mnn.pool", "mnn.select", "mnn.scoring", "mnn.selector", "mnn.tables",
     "mnn.train", "pruning.process", "pruning.run", "pruning.surgery", "quantization.process",
     "quantization.run", "speech.training.request", "timit_fcn_mse"],
)  # fmt: skip
def test_importing_needs_no_tensorflow(module):
    code = f"import sys, {module}; assert not {{'tensorflow', 'keras'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "door",
    ["speech.enhance", "speech.prepare", "speech.train", "speech.stream", "speech.export",
     "pruning.run", "quantization.run", "mnn.select", "mnn.train", "mnn.experiments", "eval.run",
     "eval.sweep", "timit_fcn_mse"],
)  # fmt: skip
def test_a_door_opens_without_what_is_slow(door):
    """What a command needs only to work is imported when it works (`speech.base.lazy`)."""
    slow = {"tensorflow", "keras", "scipy", "matplotlib", "joblib", "soundfile", "soxr"}
    code = f"import sys, {door}; print(*({slow} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == []
