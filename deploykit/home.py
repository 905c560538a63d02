"""Where deploykit keeps what it can make again: environments, job folders, resumable runs."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return the cache folder: `$DEPLOYKIT_HOME`, else the platform's cache folder for deploykit."""
    named = os.environ.get("DEPLOYKIT_HOME")
    if named:
        return Path(named).expanduser().resolve()
    from platformdirs import user_cache_path

    return user_cache_path("deploykit", appauthor=False)
