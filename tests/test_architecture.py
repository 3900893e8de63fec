"""The rooms of the house: who may import whom, and that imports do no work."""

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


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def modules():
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path):
    room = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[room] | ALSO.get(path.relative_to(ROOT).as_posix(), set())
    for name in imported(path):
        head = name.split(".")[0]
        if head in ROOMS and head != room:
            assert head in allowed, f"{path} imports {name}"
        if path.name not in ("tfmot_bridge.py", "tfmot_worker.py"):
            assert head != "tf_keras", f"{path} imports tf_keras"
        assert not name.startswith("tensorflow.keras"), f"{path} imports tf.keras"


@pytest.mark.parametrize(
    "module",
    ["speech.audio", "speech.augment", "speech.corpus", "speech.data.prefetch", "speech.demo",
     "speech.doctor",
     "speech.enhance", "speech.fcn", "speech.losses", "speech.mixing", "speech.modelfile",
     "speech.net.enhancer", "speech.net.folding", "speech.net.keras_models", "speech.net.plan",
     "speech.net.reach", "speech.net.streaming",
     "speech.network", "speech.opencorpus", "speech.options", "speech.prepare",
     "speech.stream", "speech.tensorboard", "speech.train", "speech.training.config",
     "speech.training.options",
     "speech.weights", "eval.cost", "eval.cycles", "eval.metrics",
     "eval.page", "eval.report", "eval.run", "eval.scoring", "eval.sweep", "mnn.arbiter",
     "mnn.experiments", "mnn.pool", "mnn.select", "mnn.selection", "mnn.selector", "mnn.tables",
     "mnn.train", "pruning.run", "pruning.surgery", "timit_fcn_mse"],
)  # fmt: skip
def test_importing_needs_no_tensorflow(module):
    code = f"import sys, {module}; assert not {{'tensorflow', 'keras'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
