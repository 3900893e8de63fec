"""The rooms of the house: who may import whom, no arrow upward, no circle; imports do no work."""

import ast
import re
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
    "mnn/calibrate.py": {"eval"},
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
PARSE = {"speech.training.common_options", "speech.training.options"}


def takers_of_options(path):
    """Returns the functions of a file that are given parsed options, and the names of arguments."""
    return {
        node.name: [argument.arg for argument in node.args.args]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and any(
            argument.annotation is not None and "Namespace" in ast.unparse(argument.annotation)
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        )
    }


def test_options_end_at_the_door():
    """Only what checks or converts them beside the parser is given them; measurements are doors."""
    texts = {name: path.read_text() for name, path in MODULES.items()}
    for name in sorted(MODULES.keys() - PARSE):
        for function, arguments in takers_of_options(MODULES[name]).items():
            if not name.startswith("benchmarks."):
                assert arguments[:2] == ["parser", "options"], f"{name}.{function} is given options"
                continue
            own = name.split(".")[-1]
            use = re.compile(rf"\b{own}\.{function}\(|from {name} import.*\b{function}\b")
            for other in MODULES.keys() - {name}:
                assert not use.search(texts[other]), f"{other} gives {name}.{function} options"


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


#: Functions that import by themselves, each with the reason; all else stands at the top of a file,
#: or comes by `speech.base.lazy`.
IMPORT_THEMSELVES = {
    "speech/doctor.py": "it says what is missing, so each check imports what it looks at",
    "speech/stream.py": "termios and tty are not on every system",
    "quantization/tfmot_worker.py": "TF-MOT changes the Keras of whatever imports it",
    "eval/cycles.py": "scalesim is a dependency of one option, and its parts come one by one",
}


def imports_inside(tree):
    """Returns the lines of a file at which a function imports something."""
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    inside = (node for function in functions for node in ast.walk(function))
    return sorted({node.lineno for node in inside if isinstance(node, ast.Import | ast.ImportFrom)})


def late_modules(tree):
    """Returns (name, module) of each ``name = lazy.module("module")`` of a file."""
    return {
        (node.targets[0].id, node.value.args[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) in ("module", "lazy.module")
    }


def typed_modules(tree):
    """Returns (name, module) of all that a file imports for the type checker alone."""
    found = set()
    for branch in tree.body:
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING":
            for node in branch.body:
                where = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                found |= {(alias.asname or alias.name, where + alias.name) for alias in node.names}
    return found


def test_an_import_inside_of_a_function_is_found():
    tree = ast.parse("import a\ndef f():\n    if a:\n        import b\nclass C:\n    def g(self):\n"
                     "        from c import d\n")  # fmt: skip
    assert imports_inside(tree) == [4, 7]


def test_imports_stand_at_the_top():
    for name, path in MODULES.items():
        place = path.relative_to(ROOT).as_posix()
        if not name.startswith("benchmarks"):
            found = imports_inside(ast.parse(path.read_text()))
            assert bool(found) == (place in IMPORT_THEMSELVES), f"{place}, lines {found}"


def test_what_is_late_is_known_to_the_type_checker():
    """So floors and circles are seen too: `imported` reads what stands under TYPE_CHECKING."""
    num_late = 0
    for path in MODULES.values():
        tree = ast.parse(path.read_text())
        late = late_modules(tree)
        num_late += len(late)
        assert late <= typed_modules(tree), path
    assert num_late > 30


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


#: Modules that define layers, models, constraints or optimizers, and so import Keras.
ON_KERAS = {
    "mnn.rprop",
    "quantization.finetune",
    "speech.net.chain_training",
    "speech.net.constraints",
    "speech.net.layers",
    "speech.net.training_model",
}
#: What is imported when it is used (`speech.base.lazy`), so that a command's help is there at once.
SLOW = {
    "tensorflow", "keras", "scipy", "matplotlib", "joblib", "soundfile", "soxr", "h5py", "tqdm",
    "asyncio", "PIL", "jinja2", "tensorboard", "onnx", "distributed",
}  # fmt: skip


def test_importing_needs_nothing_that_is_slow():
    names = [name for name in MODULES if not name.startswith("benchmarks")]
    code = (
        "import importlib, sys\n"
        f"for name in {sorted({*names} - ON_KERAS)}:\n"
        "    importlib.import_module(name)\n"
        f"    found = {SLOW} & set(sys.modules)\n"
        "    if found: sys.exit(f'{name} imports {found}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_defines_layers_is_known():
    for name in ON_KERAS:
        assert "keras" in imported(MODULES[name])
