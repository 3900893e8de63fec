"""Words that come from files, made harmless for where they go: a terminal, a table, a page.

Names of files and layers, metadata and what libraries say of a damaged file may hold anything:
sequences that drive a terminal, marks that turn text around, formulas of a spreadsheet, and
megabytes. All of it passes through here once, on its way out: `speech.base.cli` for what is
printed, `csv_text` for tables, `markdown` for reports, `shown` for pages. Names that anybody may
have stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Names and reasons are cut beyond this length. People give far shorter ones.
MOST = 1000

#: The beginning of a cell that spreadsheets compute. Some of them accept full-width signs too.
_FORMULA = re.compile(r"'*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_QUOTED_FORMULA = re.compile(r"'+[=+\-@\uff1d\uff0b\uff0d\uff20]")
_MARKUP = re.compile(r"([\\`|<>\[\]])")


def shown(text: str, most: int | None = None, keep: str = "") -> str:
    """Returns text, such as the name of a file, with escapes for what can't be shown.

    Args:
        text: Anything.
        most: Characters at most; the middle of a longer text is left out. None for any number.
        keep: Characters that are left as they are.
    """
    if most is not None and len(text) > 2 * most:  # before each character is looked at
        text = text[:most] + text[-most:]
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
            for char in text
        )
    if most is None or len(text) <= most:
        return text
    rest = (most - 5) // 3
    return f"{text[: most - 5 - rest]} ... {text[len(text) - rest :]}"


def csv_cell(value: Any) -> Any:
    """Returns a value for a table: text that a spreadsheet would compute gets an apostrophe.

    Text that is a number stays, and so does what is no text. `from_cell` takes the apostrophe away.
    """
    if not isinstance(value, str):
        return value
    text = shown(value, MOST)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def from_cell(text: str) -> str:
    """Returns the text that `csv_cell` has written."""
    return text[1:] if _QUOTED_FORMULA.match(text) else text


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Returns a table as CSV.

    Args:
        rows: By column; one that is missing stays empty.
        columns: In order.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writerow({column: csv_cell(column) for column in columns})
    for row in rows:
        writer.writerow({column: csv_cell(value) for column, value in row.items()})
    return stream.getvalue()


def markdown(text: str) -> str:
    """Returns text for a report in Markdown: no markup, no HTML, on one line."""
    return _MARKUP.sub(r"\\\1", shown(" ".join(text.split()), MOST))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
