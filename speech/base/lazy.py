"""The lazy loader: packages that are slow to import and not always needed.

``from speech.base.lazy import scipy`` costs nothing; the package is imported when something of it
is first used. A command that only prints its help, or refuses a value, never waits for it.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import scipy as scipy


class _Lazy(types.ModuleType):
    """Stands for a package until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


if not TYPE_CHECKING:
    scipy = _Lazy("scipy")
