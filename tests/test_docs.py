"""make docs: builds without a warning, has every module, and asks nothing of other servers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("speech", "pruning", "quantization", "mnn", "eval")


@pytest.mark.slow
def test_the_site_is_whole_and_asks_nothing_of_anyone(tmp_path):
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text("utf-8")
        for tag in re.findall(r"<(?:link|script|img|iframe|source|audio)\b[^>]*>", text):
            assert not re.search(r"""(?:href|src)=["']?(?:https?:)?//""", tag), (page.name, tag)
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text("utf-8")), style.name
    for package in PACKAGES:
        text = (tmp_path / "api" / f"{package}.html").read_text("utf-8")
        for path in (ROOT / package).glob("*.py"):
            if path.stem != "__init__" and not path.stem.startswith("_"):
                assert f'id="{package}.{path.stem}"' in text, path
    guides = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert guides < {page.stem for page in pages}
    # A link between places in the repository leads to the same place in the site.
    assert 'href="RESULTS.html"' in (tmp_path / "mnn.html").read_text("utf-8")
    assert 'href="mnn.html"' in (tmp_path / "index.html").read_text("utf-8")
