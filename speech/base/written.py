"""What a file was when it was written, to tell later whether it still is that."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass


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
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return cls(os.fstat(stream.fileno()).st_size, digest)

    def is_still(self, path: str | os.PathLike) -> bool:
        """Returns whether a file is what it was; one that is gone or unreadable is not."""
        try:
            return os.stat(path).st_size == self.num_bytes and Written.of(path) == self
        except OSError:
            return False
