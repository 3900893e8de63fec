"""What setup.py allows, and what requirements.txt takes of it."""

import ast
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def allowed():
    """Returns the requirements of setup.py by extra; those of '' are always needed."""
    tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    found = {
        node.arg: ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in ("install_requires", "extras_require")
    }
    groups = {"": found["install_requires"], **found["extras_require"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


ALLOWED = allowed()


@pytest.mark.parametrize("extra", ALLOWED)
def test_every_package_has_a_lower_bound(extra):
    for requirement in ALLOWED[extra]:
        bounds = [part for part in requirement.specifier if part.operator == ">="]
        assert len(bounds) == 1, f"{requirement}: make test-lowest would take its first version"


def test_a_package_has_the_same_bounds_in_every_extra():
    bounds = {}
    for requirement in sum(ALLOWED.values(), []):
        assert bounds.setdefault(requirement.name, requirement.specifier) == requirement.specifier


def test_the_versions_tested_together_are_allowed():
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {requirement.name: str(requirement.specifier) for requirement in pins}
    wanted = [*ALLOWED[""], *ALLOWED["test"], *ALLOWED["tfmot"]]
    assert set(pinned) == {requirement.name for requirement in wanted}
    for requirement in wanted:
        version = pinned[requirement.name].removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement.name}=={version}"
