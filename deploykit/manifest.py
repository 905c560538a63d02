"""`manifest.json` of a bundle: what it is, what it needs, where it came from, a SHA-256 per file.

Paths in it are relative, so that a bundle may be moved. No time and no name of a machine is in it,
so that the same input gives the same bytes.
"""

from __future__ import annotations

import json
import platform
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from deploykit import processor
from deploykit.errors import BundleError, UnavailableError, UsageError
from deploykit.parity import Tolerance
from deploykit.placement import DeviceShare
from deploykit.protocol import LoadRequest, Signature, from_json, to_json

MANIFEST_SCHEMA = 1
"""Of the manifest. A change that an older reader would misunderstand takes the next number."""

MANIFEST = "manifest.json"
ANY = "any"
"""Machine or system of a payload that runs wherever its runtime does."""
FOLDERS = ("payload", "golden")
"""Where the files of a bundle lie."""
REBUILD = "the bundle is damaged: copy or compile it again"
_LARGEST_MANIFEST = 16 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file must be: the hex SHA-256 of its content, and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the model came from: `source` is its name only, not a path of the build machine.

    `operators` counts the operators of the ONNX model.
    """

    source: str
    format: str
    source_sha256: str
    converter: str
    converter_versions: dict[str, str] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    onnx_sha256: str = ""
    opset: int | None = None
    operators: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is known of a bundle.

    `settings`, `notes` and `versions` are what the target's `compile` reported. `machine` and
    `system` are the architecture and operating system that the payload needs, in the kernel's words
    (`x86_64`, `Linux`), or `any`; `cpu_flags` the instruction sets, where it was compiled for them.
    `hardware` names the profile that it was compiled for. `placement` says on which devices the
    operations ran in the proof, empty where the target does not tell. `golden` names the files of
    the pairs; `files` has every file but the manifest itself.
    """

    schema: int = MANIFEST_SCHEMA
    deploykit: str
    signature: Signature
    target: str
    device: str
    precision: str
    threads: int | None
    settings: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    machine: str
    system: str = field(default_factory=platform.system)
    cpu_flags: tuple[str, ...] = ()
    hardware: str = ""
    tolerance: Tolerance
    provenance: Provenance
    placement: dict[str, DeviceShare] = field(default_factory=dict)
    golden: tuple[str, ...] = ()
    files: dict[str, FileRecord] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON values."""
        value: dict[str, Any] = to_json(self)
        return value


def read_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of the bundle in `folder`; no other file is read.

    Raises UsageError where there is no such folder, BundleError where it is no bundle, the manifest
    is damaged or of an unknown schema, or it names a path outside the bundle.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UsageError(f"no bundle at `{folder}`", hint="`deploykit compile` makes bundles")
    path = folder / MANIFEST
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"`{path}` is not a plain file", hint=REBUILD)
        with path.open("rb") as stream:
            text = stream.read(_LARGEST_MANIFEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"`{folder}` is no bundle: it has no {MANIFEST}",
            hint="name the folder that `deploykit compile` wrote",
        ) from None
    except OSError as error:
        raise BundleError(f"cannot read `{path}`: {error.strerror}") from error
    if len(text) > _LARGEST_MANIFEST:
        raise BundleError(f"`{path}` has more than {_LARGEST_MANIFEST} bytes", hint=REBUILD)
    manifest = _parse(path, text)
    for name, record in manifest.files.items():
        _check_name(path, name)
        if not _SHA256.fullmatch(record.sha256) or record.bytes < 0:
            raise BundleError(f"`{path}` has a wrong hash or size of `{name}`", hint=REBUILD)
    for name in manifest.golden:
        if name not in manifest.files:
            raise BundleError(f"`{path}` has the golden file `{name}` without a hash", hint=REBUILD)
    return manifest


def _parse(path: Path, text: bytes) -> Manifest:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"`{path}` is not JSON: {error}", hint=REBUILD) from error
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != MANIFEST_SCHEMA or isinstance(schema, bool):
        raise BundleError(
            f"`{path}` has schema {schema!r}, this deploykit reads {MANIFEST_SCHEMA}",
            hint="use the deploykit that wrote it"
            + (
                f", {value['deploykit']}"
                if isinstance(schema, int) and "deploykit" in value
                else ""
            )
            + ", or compile the model again",
        )
    try:
        return from_json(Manifest, value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"`{path}` is damaged: {error}", hint=REBUILD) from error


def _check_name(path: Path, name: str) -> None:
    """Refuse a name that could lead out of the bundle, or means different files to different systems."""
    parts = PurePosixPath(name).parts
    if (
        not parts
        or parts[0] not in FOLDERS
        or len(parts) < 2
        or ".." in parts
        or str(PurePosixPath(name)) != name
        or any(sign in name for sign in "\\\0:")
    ):
        raise BundleError(
            f"`{path}` names the file {name!r}, which is not in {' or '.join(FOLDERS)}",
            hint="do not use this bundle unless you know why",
        )


def check_machine(manifest: Manifest) -> None:
    """Check that this machine has what the bundle needs of it.

    Raises UnavailableError naming every part that is missing.
    """
    missing = []
    here = platform.system()
    if manifest.system not in (ANY, here):
        missing.append(f"the system {manifest.system} (this is {here})")
    if manifest.machine not in (ANY, processor.architecture()):
        missing.append(f"the architecture {manifest.machine} (this is {processor.architecture()})")
    elif flags := processor.instruction_sets():
        absent = sorted(set(manifest.cpu_flags) - flags)
        if absent:
            missing.append(f"the processor's {', '.join(absent)}")
    if missing:
        raise UnavailableError(
            f"this machine cannot run the bundle for {manifest.target}:{manifest.device}: "
            f"it lacks {' and '.join(missing)}",
            hint="compile the model on a machine like this one",
        )


def load_request(
    folder: str | Path, manifest: Manifest, *, threads: int | None = None
) -> LoadRequest:
    """Return what the target's `load` is asked; `threads` None takes those it was compiled for."""
    return LoadRequest(
        payload=str(Path(folder).resolve() / "payload"),
        signature=manifest.signature,
        device=manifest.device,
        precision=manifest.precision,
        threads=threads if threads is not None else manifest.threads,
        settings=manifest.settings,
    )
