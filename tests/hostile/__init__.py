"""Attacks on the readers, generated at test time, and the process that reads them.

A family is a function of an empty folder that yields (name, file name, bytes). Bytes may be None
if the attack has been written there already. ``python -m tests.hostile`` runs them all and prints
a table; with a folder, it reads what lies there and prints one JSON object a file.
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.hostile import hdf5_files, packed_files, sound_files

FAMILIES = {
    f"{module.__name__.rpartition('.')[2].removesuffix('_files')}: {name.replace('_', ' ')}": family
    for module in (hdf5_files, packed_files, sound_files)
    for name, family in module.FAMILIES.items()
}

_ROOT = Path(__file__).parent.parent.parent


def attack(folder, families):
    """Writes families of files, has a process read them; returns family -> {attack: result}."""
    names = {}
    for index, (family, make) in enumerate(families.items()):
        files = folder / "files" / f"{index:02}"
        files.mkdir(parents=True)
        for name, file_name, data in make(files):
            if data is not None:
                (files / file_name).write_bytes(data)
            names[str(files / file_name)] = family, name
        for path in files.iterdir():
            if str(path) not in names:  # what an attack points at
                path.rename(folder / path.name)
    run = subprocess.run(
        [sys.executable, "-m", "tests.hostile", str(folder / "files")],
        cwd=_ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    results = {family: {} for family in families}
    for line in run.stdout.splitlines():
        result = json.loads(line)
        family, name = names[result["file"]]
        results[family][name] = result
    assert (run.returncode, run.stderr) == (0, ""), f"after {name!r} of {family!r}"
    assert sum(map(len, results.values())) == len(names)
    return results
