"""What a measurement must say about the machine it was made on; nothing about its owner.

Read from `/proc` and `/sys`, no command run, no package imported. What cannot be read is left out
(None or empty), never guessed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

# What inference kernels choose by: x86, then ARM.
FLAGS = frozenset(
    {
        *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8"),
        *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"),
        *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
        *("neon", "vfpv4", "asimd", "asimdhp", "asimddp", "fphp", "bf16", "i8mm"),
        *("sve", "sve2", "svebf16", "svei8mm", "sme", "sme2"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One computer at one moment.

    `id` is a hash of the hardware alone (`architecture` to `caches`, and memory in GiB): equal
    before and after a reboot or an upgrade, and equal for two machines of the same make.
    `cores_usable` is what the affinity mask and the container's quota leave of `cores_logical`.
    """

    id: str
    architecture: str
    cpu_vendor: str
    cpu_model: str
    cpu_flags: tuple[str, ...]
    cores_logical: int
    cores_physical: int | None
    caches: dict[str, int]
    """Level and kind (`L1d`, `L2`) to bytes, of one core's view."""
    cores_usable: int
    cpu_quota: float | None
    """Cores' worth of time that the control group allows."""
    frequency_mhz: float | None
    governor: str
    load_average: tuple[float, float, float] | None
    memory_bytes: int | None
    memory_available_bytes: int | None
    memory_limit_bytes: int | None
    """Of the control group."""
    kernel: str
    os: str
    python: str
    virtualisation: str
    """What hints at a hypervisor or container, empty where nothing does."""


def fingerprint(*, root: Path = Path("/")) -> Machine:
    """Return what this machine is and how busy it is now. `root` is where `/proc` and `/sys` lie."""
    cpu = _cpu_fields(root)
    memory = _memory(root)
    machine = Machine(
        id="",
        architecture=platform.machine(),
        cpu_vendor=cpu.get("vendor_id") or cpu.get("CPU implementer", ""),
        cpu_model=_cpu_model(cpu, root),
        cpu_flags=_flags(cpu),
        cores_logical=os.cpu_count() or 1,
        cores_physical=_physical_cores(root),
        caches=_caches(root),
        cores_usable=usable_cores(root=root),
        cpu_quota=_cpu_quota(root),
        frequency_mhz=_frequency(cpu, root),
        governor=_read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load_average=_load_average(root),
        memory_bytes=memory.get("MemTotal"),
        memory_available_bytes=memory.get("MemAvailable"),
        memory_limit_bytes=_memory_limit(root),
        kernel=platform.release(),
        os=_os_name(root),
        python=platform.python_version(),
        virtualisation=_virtualisation(cpu, root),
    )
    return dataclasses.replace(machine, id=_identity(machine))


def _identity(machine: Machine) -> str:
    hardware = (
        machine.architecture,
        machine.cpu_vendor,
        machine.cpu_model,
        machine.cpu_flags,
        machine.cores_logical,
        machine.cores_physical,
        machine.caches,
        # the kernel keeps a part for itself, and not always the same
        round((machine.memory_bytes or 0) / 2**30),
    )
    return hashlib.sha256(json.dumps(hardware, sort_keys=True).encode()).hexdigest()[:16]


def usable_cores(*, root: Path = Path("/")) -> int:
    """Return how many threads can really run at once here: affinity and container quota, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = _cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def _read(path: Path) -> str:
    """Return the text of a small kernel file, empty where it is absent or not for us to read."""
    try:
        return path.read_text(errors="replace").strip().strip("\0")
    except OSError:
        return ""


def _cpu_fields(root: Path) -> dict[str, str]:
    """Return the first processor's fields of `/proc/cpuinfo`, and those common to all."""
    fields: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip():
            fields.setdefault(key.strip(), value.strip())
    return fields


def _cpu_model(cpu: dict[str, str], root: Path) -> str:
    for name in ("model name", "Model", "cpu model", "uarch"):
        if cpu.get(name):
            return cpu[name]
    board = _read(root / "proc/device-tree/model")
    parts = [cpu[name] for name in ("CPU implementer", "CPU part") if name in cpu]
    return " ".join([board, *parts]).strip()


def _flags(cpu: dict[str, str]) -> tuple[str, ...]:
    words = (cpu.get("flags") or cpu.get("Features") or "").split()
    extensions = [cpu["isa"]] if "isa" in cpu else []  # RISC-V names them in one word
    return tuple(sorted(FLAGS.intersection(words)) + extensions)


def _physical_cores(root: Path) -> int | None:
    siblings = {
        _read(path)
        for path in (root / "sys/devices/system/cpu").glob(
            "cpu[0-9]*/topology/thread_siblings_list"
        )
    }
    return len(siblings) or None


def _caches(root: Path) -> dict[str, int]:
    caches = {}
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index[0-9]*")):
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size"))
        if size:
            kind = {"Data": "d", "Instruction": "i"}.get(_read(index / "type"), "")
            scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[size[2]]
            caches[f"L{_read(index / 'level')}{kind}"] = int(size[1]) * scale
    return caches


def _frequency(cpu: dict[str, str], root: Path) -> float | None:
    kilohertz = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if kilohertz.isdigit():
        return int(kilohertz) / 1000
    try:
        return float(cpu["cpu MHz"])
    except (KeyError, ValueError):
        return None


def _load_average(root: Path) -> tuple[float, float, float] | None:
    words = _read(root / "proc/loadavg").split()
    return (float(words[0]), float(words[1]), float(words[2])) if len(words) >= 3 else None


def _memory(root: Path) -> dict[str, int]:
    """Return `/proc/meminfo` in bytes."""
    found = re.findall(r"^(\w+): +(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kibibytes) * 1024 for name, kibibytes in found}


def _control_groups(root: Path, controller: str) -> list[Path]:
    """Return this process's control group of `controller` and all above it, innermost first.

    Inside a container the path that `/proc` gives may be the host's; the mount's root then is the
    container's own group, and it is in the list in any case.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        if controllers:
            if controller not in controllers.split(","):
                continue
            base = base / controllers
            if not base.is_dir():
                base = base.with_name(controller)
        elif not (base / "cgroup.controllers").is_file():
            continue
        group = base / path.strip("/")
        return [group, *(parent for parent in group.parents if parent.is_relative_to(base))]
    return []


def _cpu_quota(root: Path) -> float | None:
    quotas = []
    for group in _control_groups(root, "cpu"):
        words = _read(group / "cpu.max").split() or [
            _read(group / "cpu.cfs_quota_us"),
            _read(group / "cpu.cfs_period_us"),
        ]
        if words[0].isdigit() and words[1].isdigit():  # `max` and -1 mean no limit
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _memory_limit(root: Path) -> int | None:
    limits = []
    for group in _control_groups(root, "memory"):
        text = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        if text.isdigit() and int(text) < 2**60:  # version 1 writes a huge number for no limit
            limits.append(int(text))
    return min(limits, default=None)


def _os_name(root: Path) -> str:
    named = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read(root / "etc/os-release"), re.MULTILINE)
    return named[1] if named else platform.system()


def _virtualisation(cpu: dict[str, str], root: Path) -> str:
    hints = []
    if "hypervisor" in cpu.get("flags", "").split():
        hints.append("hypervisor")
    product = _read(root / "sys/class/dmi/id/sys_vendor")
    if re.search(r"QEMU|KVM|VMware|Xen|Amazon|Google|Microsoft|innotek|OpenStack", product):
        hints.append(product)
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        hints.append("container")
    return ", ".join(hints)
