"""Libraries of the system that a plugin builds on and no package brings, such as a driver's."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.plugins import Plugin


def missing_libraries(plugin: Plugin) -> str:
    """Return in a few words which of the libraries that `plugin` declares are not here, else nothing.

    Asked before an environment is made, which may be gigabytes: without them nothing in it works.
    """
    absent = [f"{what} (`{name}`)" for name, what in plugin.libraries.items() if not _loads(name)]
    return f"this machine lacks {' and '.join(absent)}" if absent else ""


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)  # asks the loader itself: it knows every path that counts
    except OSError:
        return False
    return True
