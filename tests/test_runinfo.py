"""What is written beside results says what was typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = "import json\nfrom speech.base.runinfo import run_info as info\nprint(json.dumps(info()))\n"


@pytest.mark.parametrize("words", [["-m", "tools.run"], ["-m", "tools"], ["tools/run.py"]])
def test_the_command_is_as_typed(words, tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("run", "__main__", "__init__"):
        (tmp_path / f"tools/{name}.py").write_text(TEXT if name != "__init__" else "")
    done = subprocess.run(
        [sys.executable, *words, "--out", "a b"], cwd=tmp_path, check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    name = ["run.py"] if len(words) == 1 else words  # the folder may be one's own
    assert json.loads(done.stdout)["command"] == ["python", *name, "--out", "a b"]
