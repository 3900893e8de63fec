"""Files that a tool has made of others, found by the paths of these."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePath

from speech.data.pairing import audio_stem
from speech.sound.audio import find_audio


class MadeFiles:
    """A folder of audio files that a tool has made of others.

    A file belongs to another one by its path below the folder; else by its name, where only one
    file of the folder has it. Audio endings, upper and lower case, and the way in which accents are
    written may differ.

    Args:
        folder: Where they are.

    Attributes:
        folder: The same.
        paths: All of them, sorted.

    Raises:
        ValueError: The folder is missing or holds no audio.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.paths = find_audio(folder)
        self._by_path: dict[str, list[Path]] = defaultdict(list)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self._by_path[bare(path.relative_to(folder))].append(path)
            self._by_name[bare(PurePath(path.name))].append(path)

    def of(self, *relatives: PurePath, by_name: bool = True) -> Path:
        """Returns the file that was made of another one.

        Args:
            relatives: Paths that it may have below its folder; the errors name the last.
            by_name: Whether its name will do.

        Raises:
            ValueError: There is none, or more than one.
        """
        found = [self._by_path.get(bare(relative), []) for relative in relatives]
        if by_name:
            found.append(self._by_name.get(bare(PurePath(relatives[-1].name)), []))
        for paths in found:
            if len(paths) == 1:
                return paths[0]
        why = "several files" if any(found) else "no file"
        raise ValueError(f"{self.folder}: {why} for {relatives[-1]}")

    def check_apart(self, relatives: Iterable[PurePath]) -> None:
        """Checks that no file is taken for two others.

        Args:
            relatives: The paths of all others, as for `of`; those without a file are passed over.

        Raises:
            ValueError: One is.
        """
        taken: dict[Path, PurePath] = {}
        for relative in relatives:
            try:
                path = self.of(relative)
            except ValueError:
                continue
            if (other := taken.setdefault(path, relative)) != relative:
                raise ValueError(
                    f"{path}: fits {other} and {relative} by its name; give it the sub-folders "
                    "that these have"
                )


def bare(path: PurePath) -> str:
    """Returns a relative path in lower case, without audio endings; accents stand in letters."""
    # Some systems write an accent as a character of its own.
    return unicodedata.normalize("NFC", (path.parent / audio_stem(path)).as_posix()).lower()
