"""Files that are whole or absent; folders and files that are held by one run."""

import os
import subprocess
import sys

import pytest

from speech.base.files import atomic_path, held

HOLD = """
import sys, time
from pathlib import Path
from speech.base.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["run", "model.h5", "fcn.k16"])
def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path, name):
    path = tmp_path / "new" / name
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run is at work there"):
            with held(path):
                pass
        other.kill()
    with held(path):  # a killed run holds nothing
        with pytest.raises(ValueError, match="another run"):
            with held(path):
                pass
        with held(tmp_path / "new" / "another.h5"):
            pass
    with held(path):
        pass


def test_a_folder_that_nothing_was_written_to_is_not_left(tmp_path):
    out = tmp_path / "new" / "fcn.k16"
    with held(out):
        assert out.is_dir()
    assert not out.exists()
    with held(out):
        (out / "a.txt").write_text("a")
    assert (out / "a.txt").exists()
    (tmp_path / "empty").mkdir()
    with held(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()  # somebody else's


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "device")
    (tmp_path / "link").symlink_to("device")
    for name in ("folder", "device", "link"):
        with pytest.raises(ValueError, match=f"{name}: is a folder or a device, not a file"):
            with atomic_path(tmp_path / name):
                pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["device", "folder", "link"]
