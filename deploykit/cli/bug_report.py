"""The log file of an error nobody foresaw, fit to be pasted into an issue."""

from __future__ import annotations

import platform
import shlex
import sys
import time
import traceback
from pathlib import Path

from deploykit import __version__
from deploykit.home import home


def write_bug_report(arguments: list[str]) -> Path:
    """Write versions, the command and the traceback of the current exception; return the file."""
    folder = home() / "bugs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}.md"
    path.write_text(
        f"""### deploykit {__version__}

    deploykit {shlex.join(arguments)}

Python {sys.version.split()[0]} on {platform.platform()}

```
{traceback.format_exc()}
```
""",
        encoding="utf-8",
    )
    return path
