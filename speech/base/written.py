"""Remembers a file as it was written, to tell later whether it has changed since."""

from __future__ import annotations

import os
from dataclasses import dataclass

from speech.base.files import sha256_of


@dataclass(frozen=True)
class Written:
    """A file as it was written; it may have been cut, changed or exchanged since.

    Attributes:
        num_bytes: Its size.
        sha256: Of its bytes, in hexadecimal digits.
    """

    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str | os.PathLike) -> Written:
        """Returns what a file is now.

        Raises:
            OSError: It cannot be read.
        """
        return cls(os.stat(path).st_size, sha256_of(path))

    def is_still(self, path: str | os.PathLike) -> bool:
        """Returns whether a file is what it was; one that is gone or unreadable is not."""
        try:
            return os.stat(path).st_size == self.num_bytes and Written.of(path) == self
        except OSError:
            return False
