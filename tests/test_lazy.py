"""The lazy loader: nothing is imported before it is used, and then all of it is there."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from speech.base import lazy

ROOT = Path(__file__).parent.parent
NAMES = [name for name, value in vars(lazy).items() if isinstance(value, lazy._Lazy)]


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_package_is_imported_when_it_is_used_and_not_when_it_is_named():
    assert {"keras", "tensorflow", "scipy", "soundfile"} <= set(NAMES)
    run(
        "import sys; from speech.base.lazy import scipy\n"
        "def late(value): return scipy.special.expit(value)\n"
        "assert not hasattr(scipy, '__wrapped__') and 'scipy' not in sys.modules\n"
        "assert late(0.0) == 0.5 and 'scipy.special' in sys.modules"
    )


def test_a_part_that_nobody_has_imported_is_found():
    run(
        "import sys, xml; from speech.base import lazy\n"
        "assert not hasattr(xml, 'dom')\n"
        "assert lazy.module('xml').dom.__name__ == 'xml.dom'"
    )


def test_what_is_loaded_is_the_module_itself():
    late = lazy.module("speech.base.words")
    lazy.load(late)
    assert late.shown is sys.modules["speech.base.words"].shown
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = late.no_such_name


def test_a_package_that_is_missing_says_so_when_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="onnx"):
        lazy.load(lazy.onnx)
    with pytest.raises(ImportError, match="onnx"):
        _ = lazy.onnx.helper


def test_a_late_module_goes_to_another_process():
    late = pickle.loads(pickle.dumps(lazy.module("speech.base.words")))
    assert late.shown is lazy.module("speech.base.words").shown
