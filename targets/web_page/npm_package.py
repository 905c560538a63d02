"""The files of onnxruntime-web: one package of npm, pinned by its hash, kept in deploykit's home.

npm itself fetches it where it is installed, with the user's registry, proxy and credentials. Without
npm the archive comes over HTTPS from the registry that the user's npm configuration names.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from deploykit.errors import PluginError, UnavailableError
from deploykit.home import home
from deploykit.progress import phase

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
ARCHIVE = f"{PACKAGE}-{VERSION}.tgz"

# `npm view onnxruntime-web@1.30.0 dist.integrity`: Subresource Integrity, https://www.w3.org/TR/SRI/
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SIZE_MB = 33

DOWNLOAD_S = 600
LARGEST_BYTES = 256 * 2**20
"""No file of the package is larger: an archive that says so is not ours."""


def folder() -> Path:
    """Return the folder that keeps the archive."""
    return home() / "npm"


def archive() -> Path:
    """Return the archive of the package, fetched where it is not in deploykit's home yet.

    Raises UnavailableError where it cannot be fetched, PluginError where what came is not it.
    """
    path = folder() / ARCHIVE
    if path.is_file() and integrity_of(path) == INTEGRITY:
        return path
    phase(f"downloading {PACKAGE} {VERSION} from npm ({SIZE_MB} MB)")
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder(), prefix="download-") as temporary:
        npm = shutil.which("npm")
        fetched = _pack(npm, Path(temporary)) if npm else _download(Path(temporary))
        check(fetched)
        fetched.replace(path)  # last and atomic: present means complete
    return path


def check(path: Path) -> None:
    """Raise PluginError where the archive `path` is not byte for byte the one that we know."""
    found = integrity_of(path)
    if found != INTEGRITY:
        raise PluginError(
            f"what npm's registry gave as {PACKAGE} {VERSION} is another archive: {found}",
            hint=f"expected {INTEGRITY}; check the registry that `npm config get registry` names",
        )


def integrity_of(path: Path) -> str:
    """Return the SHA-512 of a file as npm writes it."""
    with path.open("rb") as stream:
        digest = hashlib.sha512()
        while block := stream.read(1 << 20):
            digest.update(block)
    return f"sha512-{base64.b64encode(digest.digest()).decode()}"


def unpack(path: Path, names: Mapping[str, str], destination: Path) -> None:
    """Copy files of the archive's `dist` folder into `destination`: name there to name here.

    Only plain files of exactly these names are looked at, so no path of the archive matters. Raises
    PluginError where one is missing, is no plain file or is too large.
    """
    wanted = {f"package/dist/{name}": own for name, own in names.items()}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = wanted.get(member.name)
                if name is None:
                    continue
                source = archive.extractfile(member) if member.isreg() else None
                if source is None or member.size > LARGEST_BYTES:
                    raise PluginError(f"`{member.name}` in `{path}` is not a plain file")
                with source, (destination / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                del wanted[member.name]
                if not wanted:
                    return
    except (tarfile.TarError, EOFError, OSError) as error:
        raise PluginError(f"cannot unpack `{path}`: {error}") from error
    raise PluginError(f"`{path}` lacks {', '.join(sorted(wanted))}")


def registry(environ: Mapping[str, str] = os.environ) -> str:
    """Return the registry's address with a slash at its end, as npm's configuration names it, or "".

    Read as npm does: `npm_config_registry`, then `registry` of the user's `.npmrc`, then of the
    global one; https://docs.npmjs.com/cli/v11/using-npm/config.
    """
    for name, value in environ.items():
        if name.lower() == "npm_config_registry" and value.strip():
            return value.strip().rstrip("/") + "/"
    own = environ.get("NPM_CONFIG_USERCONFIG") or environ.get("npm_config_userconfig")
    for path in (Path(own) if own else Path.home() / ".npmrc", Path("/etc/npmrc")):
        found = _registry_in(path)
        if found:
            return found.rstrip("/") + "/"
    return ""


def _registry_in(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True, delimiters=("=",))
    try:
        parser.read_string(f"[npm]\n{text}")
    except configparser.Error:
        return ""
    return (parser.get("npm", "registry", fallback="") or "").strip().strip("\"'")


def _pack(npm: str, destination: Path) -> Path:
    """Let npm fetch the archive. It runs nothing of the package and asks nobody else."""
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(destination)]
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--silent"]
    try:
        done = subprocess.run(
            [*command, *quiet, "--loglevel=error"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_S,
            check=False,
            cwd=destination,
        )
    except subprocess.TimeoutExpired as error:
        raise _not_fetched(f"npm did not end within {DOWNLOAD_S} s") from error
    except OSError as error:
        raise _not_fetched(f"cannot start `{npm}`: {error.strerror or error}") from error
    path = destination / ARCHIVE
    if done.returncode or not path.is_file():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise _not_fetched(lines[0] if lines else f"npm ended with status {done.returncode}")
    return path


def _download(destination: Path) -> Path:
    if not registry():
        raise _not_fetched("npm is not installed, and its configuration names no registry")
    address = f"{registry()}{PACKAGE}/-/{ARCHIVE}"
    path = destination / ARCHIVE
    if not address.startswith("https://"):
        raise _not_fetched(f"npm's registry `{registry()}` is not an https address")
    try:
        with urllib.request.urlopen(address, timeout=60) as answer, path.open("wb") as target:
            shutil.copyfileobj(answer, target, 1 << 20)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise _not_fetched(str(getattr(error, "reason", error))) from error
    return path


def _not_fetched(reason: str) -> UnavailableError:
    return UnavailableError(
        f"target web needs {PACKAGE} {VERSION}, which could not be fetched from npm: {reason}",
        hint=f"where there is a network, run `npm pack {PACKAGE}@{VERSION}` and put {ARCHIVE} "
        f"into `{folder()}`",
    )
