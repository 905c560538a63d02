"""The deployable artifact: a folder with `manifest.json`, the payload, and golden inputs and outputs.

    BUNDLE/
        manifest.json       see `manifest.py`
        payload/            what the target compiled
        golden/00.npz       a pair: `in_NAME` of every input, `out_NAME` of every output

It is written whole or not at all, over an older bundle but over nothing else: everything is made in a
folder beside the destination, which is then exchanged for it in one step.

The hashes find damage, not malice: a payload is native code, so load only bundles from people you
trust.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from deploykit.errors import BundleError, OutputError, UsageError
from deploykit.manifest import FOLDERS, MANIFEST, REBUILD, FileRecord
from deploykit.manifest import MANIFEST_SCHEMA as MANIFEST_SCHEMA
from deploykit.manifest import Manifest as Manifest
from deploykit.manifest import Provenance as Provenance
from deploykit.manifest import check_machine as check_machine
from deploykit.manifest import load_request as load_request
from deploykit.manifest import read_manifest as read_manifest
from deploykit.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Pair = tuple[dict[str, Array], dict[str, Array]]


def write_bundle(
    folder: str | Path,
    manifest: Manifest,
    payload: str | Path,
    pairs: Sequence[Pair] = (),
) -> Manifest:
    """Write the bundle `folder` from the files in `payload` and the golden `pairs`.

    `golden` and `files` of the manifest are filled in; the complete one is returned. An older
    bundle at `folder` is replaced in one step and stays as it was when anything fails.

    Raises OutputError where something other than a bundle is there, or it cannot be written.
    """
    folder, payload = Path(os.path.realpath(folder)), Path(payload)
    _check_replaceable(folder)
    try:
        with _parents(folder), _folder_beside(folder) as new:
            _copy_plain_files(payload, new / "payload")
            names = []
            for number, (feed, outputs) in enumerate(pairs):
                (new / "golden").mkdir(exist_ok=True)
                names.append(f"golden/{number:02}.npz")
                write_tensors(new / names[-1], _tensors_of(feed, outputs))
            manifest = dataclasses.replace(
                manifest,
                golden=tuple(names),
                files={
                    path.relative_to(new).as_posix(): FileRecord(
                        sha256=sha256_of(path), bytes=path.stat().st_size
                    )
                    for path in sorted(new.rglob("*"))
                    if path.is_file()
                },
            )
            text = json.dumps(manifest.to_json(), indent=2, sort_keys=True, ensure_ascii=False)
            (new / MANIFEST).write_text(text + "\n", encoding="utf-8")
            # nothing is written that could not be read back
            if read_manifest(new) != manifest:
                raise OutputError(f"the manifest of `{folder}` does not survive as JSON")
            golden(new, manifest)
            _install(new, folder)
    except OSError as error:
        raise OutputError(
            f"cannot write the bundle `{folder}`: {error.strerror or error}",
            hint="name a folder that you may write to, with room for it",
        ) from error
    return manifest


def _check_replaceable(folder: Path) -> None:
    """Raise OutputError unless `folder` is absent, empty, or a bundle with nothing else in it."""
    if not os.path.lexists(folder):
        return
    hint = "name another folder, or remove this one yourself"
    if not folder.is_dir():
        raise OutputError(f"`{folder}` is a file, not a bundle", hint=hint)
    entries = {entry.name for entry in folder.iterdir()}
    if not entries:
        return
    try:
        read_manifest(folder)
        known = {MANIFEST, *FOLDERS}
    except BundleError as error:
        raise OutputError(
            f"`{folder}` exists and is not a bundle of this deploykit: {error.message}", hint=hint
        ) from error
    if entries - known:
        strange = ", ".join(sorted(entries - known))
        raise OutputError(f"the bundle `{folder}` holds files of others: {strange}", hint=hint)


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make the folders above `folder`; those made here go again where the block fails."""
    made: list[Path] = []
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            made.append(parent)
        yield
    except BaseException:
        for parent in reversed(made):
            with contextlib.suppress(OSError):  # another process may use it by now
                parent.rmdir()
        raise


@contextlib.contextmanager
def _folder_beside(folder: Path) -> Iterator[Path]:
    """Make a folder on the file system of `folder`, gone at the end whatever happens."""
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name[:100]}.", suffix=".tmp", dir=folder.parent
    ) as temporary:
        new = Path(temporary) / "bundle"
        new.mkdir()
        yield new


def _copy_plain_files(payload: Path, destination: Path) -> None:
    """Copy the tree `payload`. Raises OutputError where it holds links or special files."""
    destination.mkdir()
    for path in sorted(payload.rglob("*")):
        copy = destination / path.relative_to(payload)
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise OutputError(
                f"the target wrote `{path.relative_to(payload)}`, which is not a plain file",
                hint="a bundle holds plain files only; this is a bug of the target's plugin",
            )
        if path.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(path, copy)


def _tensors_of(feed: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
    named = {f"in_{name}": value for name, value in feed.items()}
    named |= {f"out_{name}": value for name, value in outputs.items()}
    return dict(sorted(named.items()))


def _install(new: Path, folder: Path) -> None:
    """Put `new` at `folder`; what was there is afterwards at `new`, or gone."""
    if not folder.exists():
        new.rename(folder)
        return
    if _exchange(new, folder):
        return
    # without an exchange there is a moment with no bundle; a failure puts the old one back
    old = new.with_name("old")
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return False where this system cannot.

    renameat2(2) with RENAME_EXCHANGE, of Linux 3.15 and glibc 2.28.
    """
    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def check_files(folder: str | Path, manifest: Manifest) -> None:
    """Check every file of the bundle against the manifest's sizes and hashes.

    Raises BundleError naming the file that is missing, changed, no plain file, or unknown.
    """
    folder = Path(folder)
    for name, record in manifest.files.items():
        path = plain_file(folder, name)
        size = path.stat().st_size
        if size != record.bytes:
            raise BundleError(f"`{path}` has {size} bytes, expected {record.bytes}", hint=REBUILD)
        if sha256_of(path) != record.sha256:
            raise BundleError(f"`{path}` has changed since it was written", hint=REBUILD)
    for part in FOLDERS:
        for path in sorted((folder / part).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_dir() and name not in manifest.files:
                raise BundleError(
                    f"`{path}` does not belong to the bundle", hint=f"remove it, or {REBUILD}"
                )


def plain_file(folder: Path, name: str) -> Path:
    """Return the path of the file `name` of the bundle, which leads through no symbolic link.

    Raises BundleError where it is missing or does.
    """
    path = folder
    parts = PurePosixPath(name).parts
    for number, part in enumerate(parts):
        path = path / part
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            raise BundleError(f"`{folder / name}` is missing", hint=REBUILD) from error
        wanted = stat.S_ISREG if number == len(parts) - 1 else stat.S_ISDIR
        if not wanted(mode):
            raise BundleError(f"`{path}` is a link or special file, not a part of the bundle")
    return path


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of the file `path`. Raises BundleError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"cannot read `{path}`: {error.strerror}") from error


def golden(folder: str | Path, manifest: Manifest) -> list[Pair]:
    """Return the golden pairs of the bundle, inputs and the reference's outputs by name.

    Raises BundleError where a file is damaged or lacks a tensor of the signature.
    """
    folder = Path(folder)
    pairs = []
    for name in manifest.golden:
        path = plain_file(folder, name)
        try:
            tensors = read_tensors(path)
        except (UsageError, MemoryError) as error:
            raise BundleError(f"`{path}` holds no golden pair: {error}", hint=REBUILD) from error
        pairs.append(
            (
                _taken(path, tensors, "in_", [spec.name for spec in manifest.signature.inputs]),
                _taken(path, tensors, "out_", [spec.name for spec in manifest.signature.outputs]),
            )
        )
    return pairs


def _taken(
    path: Path, tensors: Mapping[str, Array], prefix: str, names: Sequence[str]
) -> dict[str, Array]:
    for name in names:
        if prefix + name not in tensors:
            raise BundleError(f"`{path}` lacks `{prefix}{name}`", hint=REBUILD)
    return {name: tensors[prefix + name] for name in names}
