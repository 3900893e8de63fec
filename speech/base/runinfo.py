"""Records the versions, the machine and the commit of a run; written beside every result."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "soundfile", "soxr", "pesq", "pystoi", "h5py")


def run_info() -> dict[str, Any]:
    """Returns the command line, versions, machine and git commit as plain JSON values."""
    return {
        "command": ["python", *_program(), *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "packages": {name: version for name in _PACKAGES if (version := version_of(name))},
        "git_commit": _git_commit(),
    }


def _program() -> list[str]:
    """Returns how the program was named: ``-m`` and a module, or a file."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        return [Path(sys.argv[0]).name]
    return ["-m", spec.name.removesuffix(".__main__")]


def version_of(package: str) -> str | None:
    """Returns the version of a package that is installed; None if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Returns the commit of the source tree, with '+' if it was changed since; None outside git."""
    folder = Path(__file__).parents[1]
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")
