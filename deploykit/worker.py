"""The process that runs one plugin: `PYTHON -I -X utf8 -X faulthandler worker.py MODULE FOLDER`.

Requests come as JSON lines on stdin and answers go as JSON lines to stdout; what the plugin itself
reads and prints is kept apart from both. `FOLDER` is the job folder, for what is too large for a
line.

This file also runs inside plugin environments, by its path: standard library only.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import signal
import sys
import traceback


def register_package() -> None:
    """Make `deploykit` importable from the folder of this file, and nothing else from beside it.

    This folder's parent may be the site-packages of another Python, so it must not be on the path.
    """
    if "deploykit" in sys.modules:
        return
    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    spec = importlib.util.spec_from_file_location(
        "deploykit", f"{folder}/__init__.py", submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package `deploykit` in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["deploykit"] = module
    spec.loader.exec_module(module)


# At import, not in main: `multiprocessing` spawn imports this file as `__mp_main__` in each child
# before it unpickles a plugin's function.
register_package()

from deploykit.telemetry import block_senders, switch_off  # noqa: E402

switch_off()
block_senders()


def main() -> None:
    """Serve requests until stdin ends or the parent says so."""
    module, folder = sys.argv[1:]
    # The plugin and its children get an empty stdin and the log as stdout; the channel's own
    # descriptors are not inheritable.
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.argv = [module]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    from deploykit.guard import fork_under_guard

    fork_under_guard(requests)

    from deploykit.serving import Server

    # how the parent asks a worker that takes too long where it is
    faulthandler.register(signal.SIGUSR2, all_threads=True, chain=False)
    status = 0
    try:
        Server(module, folder, answers).serve(requests)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Not sys.exit: frameworks crash and hang in their own teardown, and nothing is left to save.
    os._exit(status)


if __name__ == "__main__":
    main()
