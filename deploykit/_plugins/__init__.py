"""The folders that hold plugins, importable as `deploykit._plugins.converters.pytorch` everywhere.

In a wheel they lie beside this file, in a checkout at its root; `DEPLOYKIT_PLUGIN_PATH` adds the
user's own folders (each with `converters/`, `targets/` or `profiles/` in it). The names are real
import paths, so `multiprocessing` spawn and pickling work inside a plugin.
"""

import os
from pathlib import Path

_here = Path(__file__).resolve().parent
ROOT = _here if (_here / "converters").is_dir() else _here.parent.parent

__path__ = [
    str(ROOT),
    *filter(None, os.environ.get("DEPLOYKIT_PLUGIN_PATH", "").split(os.pathsep)),
]
