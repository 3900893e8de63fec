"""Helps MkDocs: takes in pages from outside docs/, and makes our docstrings Markdown."""

from __future__ import annotations

import inspect
import posixpath
import re
import textwrap
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

_ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")

#: Besides all that pages link to.
_PAGES = ("README.md", "RESULTS.md", "CHANGELOG.md")


def on_files(files: Any, config: Any) -> Any:
    """Adds pages from outside docs/, and whatever of the repository a page links to."""
    waiting = [*_PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(_uri(path)) is None:
            files.append(File.generated(config, _uri(path), abs_src_path=str(_ROOT / path)))
        linked = _LINK.findall((_ROOT / path).read_text("utf-8")) if path.endswith(".md") else []
        found = {posixpath.normpath(posixpath.join(posixpath.dirname(path), to)) for to in linked}
        waiting += sorted(to for to in found - seen if (_ROOT / to).is_file())
        seen |= found
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns links between places in the repository into links between places in the site."""
    here = page.file.src_uri
    path = here if page.file.generated_by else f"docs/{here}"

    def moved(link: re.Match) -> str:
        to = _uri(posixpath.normpath(posixpath.join(posixpath.dirname(path), link[1])))
        return posixpath.relpath(to, posixpath.dirname(here) or ".")

    return _LINK.sub(moved, markdown)


def _uri(path: str) -> str:
    """Returns the place in the site of a path in the repository."""
    return path.removeprefix("docs/")


class PlainDocstrings(griffe.Extension):
    """Rewrites the reStructuredText in our docstrings: '::', ``:class:``, tables; escapes '<'."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called for what a page names, which `on_object` leaves out."""
        self.on_object(obj=pkg)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is None:
            return
        text = re.sub(r":\w+:(?=`)", "", inspect.cleandoc(obj.docstring.value))
        text = _EXAMPLE.sub(_fenced, text)
        text = _TABLE.sub(_fenced, text)
        parts = _CODE.split(text)
        parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
        obj.docstring.value = "".join(parts)


#: '::' at the end of a paragraph or alone, with the lines below that stand further in.
_EXAMPLE = re.compile(r"(?m)^(?P<lead>.*)::\n(?P<body>(?:\n|^ {4}.*(?:\n|\Z))+)")
_RULE = r"=+(?: +=+)+"
_TABLE = re.compile(rf"(?m)^(?P<body>{_RULE}\n(?:.*\n)*?{_RULE}\n(?:.*\n)*?{_RULE}$)")
_CODE = re.compile(r"(?s)(^```.*?^```|`+[^`]+`+)", re.M)


def _fenced(found: re.Match) -> str:
    body = textwrap.dedent(found["body"]).strip("\n")
    lead = found.groupdict().get("lead")
    start = f"{lead}:\n\n" if lead else ""
    return f"{start}```text\n{body}\n```\n\n"
