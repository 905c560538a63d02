"""Where packages come from: pip's settings, read once and handed on to uv.

A user who has told pip about a mirror, a folder of wheels or a certificate need not tell anybody
else. pip's files and variables are read here as pip itself reads them
(https://pip.pypa.io/en/stable/topics/configuration/), because pip may be absent, and become the
variables that uv knows (https://docs.astral.sh/uv/reference/environment/). What the user has set
for uv itself always wins.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from deploykit.errors import InstallError

_TRUE = ("y", "yes", "t", "true", "on", "1")
_SECTIONS = ("global", "install")
_LISTS = ("extra-index-url", "find-links", "trusted-host", "constraint")
_READ = (
    "index-url",
    "no-index",
    *_LISTS,
    "cert",
    "client-cert",
    "proxy",
    "timeout",
    "pre",
    "keyring-provider",
)


@dataclass(frozen=True, kw_only=True)
class PackageIndex:
    """pip's settings that say where packages come from, without defaults.

    `origins` maps each setting that was found to the file or variable it was found in.
    """

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    cert: str = ""
    client_cert: str = ""
    trusted_hosts: tuple[str, ...] = ()
    constraint_files: tuple[str, ...] = ()
    proxy: str = ""
    timeout_s: str = ""
    keyring_provider: str = ""
    pre: bool = False
    origins: tuple[tuple[str, str], ...] = ()

    def described(self) -> dict[str, str]:
        """Return setting to value and origin, passwords replaced, fit to be printed."""
        values = {
            "index-url": without_credentials(self.index_url),
            "extra-index-url": " ".join(without_credentials(url) for url in self.extra_index_urls),
            "find-links": " ".join(without_credentials(link) for link in self.find_links),
            "no-index": "true" if self.no_index else "",
            "cert": self.cert,
            "client-cert": self.client_cert,
            "trusted-host": " ".join(self.trusted_hosts),
            "constraint": " ".join(without_credentials(name) for name in self.constraint_files),
            "proxy": without_credentials(self.proxy),
            "timeout": self.timeout_s,
            "keyring-provider": self.keyring_provider,
            "pre": "true" if self.pre else "",
        }
        origins = dict(self.origins)
        return {name: f"{value} ({origins[name]})" for name, value in values.items() if value}


def package_index(environ: Mapping[str, str] = os.environ) -> PackageIndex:
    """Return pip's settings from its files and from the `PIP_*` variables of `environ`.

    Raises InstallError where one of pip's files cannot be parsed.
    """
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    # pip's order: all files of section `global`, then all of `install`, then the variables
    parsed = [(path, _parse(path)) for path in configuration_files(environ)]
    for section in _SECTIONS:
        for path, parser in parsed:
            for name, value in parser.items(section) if parser.has_section(section) else ():
                if value.strip():
                    values[_normal(name)], origins[_normal(name)] = value, str(path)
    for variable, value in environ.items():
        if variable.startswith("PIP_") and value.strip():
            name = _normal(variable.removeprefix("PIP_"))
            values[name], origins[name] = value, variable
    lists = {name: tuple(values.get(name, "").split()) for name in _LISTS}
    return PackageIndex(
        index_url=values.get("index-url", "").strip(),
        extra_index_urls=lists["extra-index-url"],
        find_links=tuple(_absolute(link) for link in lists["find-links"]),
        no_index=values.get("no-index", "").strip().lower() in _TRUE,
        cert=_absolute(values.get("cert", "").strip()),
        client_cert=_absolute(values.get("client-cert", "").strip()),
        trusted_hosts=lists["trusted-host"],
        constraint_files=tuple(_absolute(name) for name in lists["constraint"]),
        proxy=values.get("proxy", "").strip(),
        timeout_s=values.get("timeout", values.get("default-timeout", "")).strip(),
        keyring_provider=values.get("keyring-provider", "").strip(),
        pre=values.get("pre", "").strip().lower() in _TRUE,
        origins=tuple(
            (name, origins.get(name, origins.get(f"default-{name}", "")))
            for name in _READ
            if name in origins or f"default-{name}" in origins
        ),
    )


def configuration_files(environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Return pip's configuration files that exist, the weakest first."""
    named = environ.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return ()
    home = Path(environ.get("HOME") or Path.home())
    system = environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    files = [Path(folder) / "pip" / "pip.conf" for folder in system.split(os.pathsep) if folder]
    if sys.platform == "darwin":
        files = [Path("/Library/Application Support/pip/pip.conf")]
    files.append(Path("/etc/pip.conf"))
    if not (named and Path(named).exists()):
        files.append(home / ".pip" / "pip.conf")
        user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip"
        mac = home / "Library" / "Application Support" / "pip"
        files.append((mac if sys.platform == "darwin" and mac.is_dir() else user) / "pip.conf")
    files.append(Path(sys.prefix) / "pip.conf")
    if named:
        files.append(Path(named))
    return tuple(path for path in files if path.is_file())


def uv_variables(index: PackageIndex, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `index` as variables for uv, leaving out all that the user has set for uv himself."""
    own_index = any(environ.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"))
    own_extra = any(environ.get(name) for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL"))
    wanted = {
        "UV_DEFAULT_INDEX": "" if own_index else index.index_url,
        "UV_INDEX": "" if own_extra else " ".join(index.extra_index_urls),
        # uv by itself looks no further than the first index that has the package; whoever gave
        # pip several indexes expects the best version of all of them
        "UV_INDEX_STRATEGY": "unsafe-best-match" if index.extra_index_urls else "",
        "UV_FIND_LINKS": ",".join(index.find_links),
        "SSL_CERT_FILE": index.cert,
        "SSL_CLIENT_CERT": index.client_cert,
        "UV_INSECURE_HOST": " ".join(index.trusted_hosts),
        "UV_HTTP_TIMEOUT": index.timeout_s.partition(".")[0],
        "UV_KEYRING_PROVIDER": index.keyring_provider
        if index.keyring_provider in ("disabled", "subprocess")
        else "",
        "UV_PRERELEASE": "allow" if index.pre else "",
        "HTTPS_PROXY": index.proxy,
        "HTTP_PROXY": index.proxy,
    }
    return {
        name: value
        for name, value in wanted.items()
        if value and not environ.get(name) and not environ.get(name.lower())
    }


def pip_variables(index: PackageIndex) -> dict[str, str]:
    """Return `index` as variables for a pip that reads no configuration file.

    So a setting such as `user` or `target`, right for the user's own installs, cannot send
    packages elsewhere.
    """
    wanted = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index.index_url,
        "PIP_EXTRA_INDEX_URL": " ".join(index.extra_index_urls),
        "PIP_FIND_LINKS": " ".join(index.find_links),
        "PIP_NO_INDEX": "1" if index.no_index else "",
        "PIP_CERT": index.cert,
        "PIP_CLIENT_CERT": index.client_cert,
        "PIP_TRUSTED_HOST": " ".join(index.trusted_hosts),
        "PIP_CONSTRAINT": " ".join(index.constraint_files),
        "PIP_PROXY": index.proxy,
        "PIP_TIMEOUT": index.timeout_s,
        "PIP_KEYRING_PROVIDER": index.keyring_provider,
        "PIP_PRE": "1" if index.pre else "",
    }
    return {name: value for name, value in wanted.items() if value}


def constraints(index: PackageIndex) -> tuple[str, ...]:
    """Return the requirements in pip's constraint files, for uv, which takes them one by one.

    Raises InstallError where a file is missing; only local files can be read.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    found = []
    for name in index.constraint_files:
        path = Path(name.removeprefix("file://"))
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InstallError(
                f"cannot read the constraint file `{without_credentials(name)}` of pip's settings: "
                f"{getattr(error, 'strerror', None) or error}",
                hint="mend pip's setting `constraint`, or set PIP_CONFIG_FILE=/dev/null",
            ) from error
        for line in lines:
            text = re.sub(r"(^|\s)#.*$", "", line).strip()
            if not text or text.startswith("-"):
                continue
            try:
                found.append(str(Requirement(text)))
            except InvalidRequirement as error:
                raise InstallError(f"`{path}`: {text!r} is no constraint: {error}") from error
    return tuple(found)


def without_credentials(url: str) -> str:
    """Return `url` with user name and password replaced by `****`."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc="****@" + parts.netloc.rpartition("@")[2]))


def _parse(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise InstallError(f"cannot read pip's configuration `{path}`: {first}") from error
    return parser


def _normal(name: str) -> str:
    name = name.lower().replace("_", "-")
    return name.removeprefix("--")


def _absolute(location: str) -> str:
    """Return a local path made absolute, a URL as it is."""
    if not location or "://" in location or location.startswith("file:"):
        return location
    return str(Path(location).expanduser().absolute())
