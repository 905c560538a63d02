"""Open a bundle in a worker of its own: for a proof or a measurement that nothing else disturbs."""

from __future__ import annotations

from pathlib import Path

from deploykit import probing
from deploykit.manifest import Manifest, check_machine, load_request
from deploykit.options import Conditions
from deploykit.session import target_of
from deploykit.steps import OpenSession, Worker


def open_bundle(
    folder: Path, manifest: Manifest, conditions: Conditions
) -> tuple[Worker, OpenSession]:
    """Return a fresh worker and the session of the bundle in it; the caller closes the worker.

    Raises UnavailableError where this machine lacks what the bundle needs.
    """
    check_machine(manifest)
    plugin = target_of(manifest)
    threads = conditions.threads or manifest.threads
    worker = Worker(
        plugin,
        python=probing.interpreter(plugin, install=conditions.install, listen=conditions.listen),
        label=folder.name,
        limits=conditions.limits,
        listen=conditions.listen,
        threads=threads,
    )
    try:
        return worker, worker.open(load_request(folder, manifest, threads=threads))
    except BaseException:
        worker.close()
        raise
