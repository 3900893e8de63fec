"""Several experts under names that tell them apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mnn.expert_files import Expert, folder_expert, open_expert
from speech.base.cli import one_line


def open_pool(
    paths: Sequence[str | os.PathLike],
    candidates: Sequence[tuple[str, Path]] = (),
    *,
    strict: bool = False,
) -> tuple[list[Expert | None], list[str]]:
    """Opens experts under names that tell them apart.

    Args:
        paths: Model files.
        candidates: (name, folder) of files that other tools have made.
        strict: Raise at the first that is refused.

    Returns:
        One expert a path and candidate, None for a refused one; and the reasons.

    Raises:
        ValueError: Two have the same name; with ``strict``, one is refused.
    """
    files = [Path(path) for path in paths]
    names = names_of(files) + [name for name, _ in candidates]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two experts are named {twice[0]!r}; give each another name")
    experts: list[Expert | None] = []
    refused = []
    makers = [partial(open_expert, path, name) for path, name in zip(files, names, strict=False)]
    makers += [partial(folder_expert, name, folder) for name, folder in candidates]
    for make in makers:
        try:
            experts.append(make())
        except (ValueError, OSError) as error:
            if strict:
                raise
            experts.append(None)
            refused.append(one_line(error))
    return experts, refused


def names_of(paths: Sequence[Path]) -> list[str]:
    """Returns a short name for each path: the stem, with its folder where stems are alike.

    Files that differ in their ending only keep it; the same file named twice is numbered.
    """
    for short in (
        lambda path: path.stem,
        lambda path: path.name,
        lambda path: "/".join(path.parts[-2:]),
        str,
    ):
        names = [short(path) for path in paths]
        if len(set(names)) == len(names):
            return names
    counts: Counter = Counter()
    for place, name in enumerate(names):
        counts[name] += 1
        names[place] = f"{name}#{counts[name]}" if counts[name] > 1 else name
    return names
