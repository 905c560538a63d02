"""The fingerprint against what other readers of this machine say, and on trees of other machines."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploykit.machine import Machine, fingerprint, usable_cores
from deploykit.protocol import from_json, to_json


def tree(root: Path, files: dict[str, str]) -> Path:
    """Lay out a machine's `/proc` and `/sys` under `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_is_as_others_see_it() -> None:
    machine = fingerprint()
    assert machine.architecture == platform.machine()
    assert machine.cores_logical == psutil.cpu_count()
    assert machine.memory_bytes == psutil.virtual_memory().total
    assert 1 <= machine.cores_usable <= len(os.sched_getaffinity(0))
    assert machine.kernel == platform.release()
    assert machine.cpu_model
    assert machine.load_average == pytest.approx(os.getloadavg(), abs=1)


def test_nothing_personal_is_kept() -> None:
    text = json.dumps(to_json(fingerprint()))
    for word in (socket.gethostname(), getpass.getuser(), str(Path.home())):
        assert f'"{word}"' not in text


def test_the_id_depends_on_the_hardware_alone(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu avx2 fma\n",
            "proc/meminfo": "MemTotal:       16000000 kB\nMemAvailable:    9000000 kB\n",
            "proc/loadavg": "0.50 0.40 0.30 1/100 1234",
        },
    )
    first = fingerprint(root=root)
    tree(root, {"proc/loadavg": "9.50 0.40 0.30 1/100 1234"})
    tree(root, {"proc/meminfo": "MemTotal:       16000100 kB\nMemAvailable:    1000000 kB\n"})
    busy = fingerprint(root=root)
    assert busy.load_average == (9.5, 0.4, 0.3)
    assert busy.id == first.id
    tree(
        root, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu avx2 fma avx512f\n"}
    )
    assert fingerprint(root=root).id != first.id


def test_it_survives_json() -> None:
    machine = fingerprint()
    assert from_json(Machine, json.loads(json.dumps(to_json(machine)))) == machine


def test_an_arm_board(tmp_path: Path) -> None:
    machine = fingerprint(
        root=tree(
            tmp_path,
            {
                "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp crc32\n"
                "CPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\nprocessor\t: 1\n",
                "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
                "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0\n",
                "sys/devices/system/cpu/cpu1/topology/thread_siblings_list": "1\n",
                "sys/devices/system/cpu/cpu0/cache/index0/level": "1",
                "sys/devices/system/cpu/cpu0/cache/index0/type": "Data",
                "sys/devices/system/cpu/cpu0/cache/index0/size": "64K",
                "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            },
        )
    )
    assert machine.cpu_model == "Raspberry Pi 5 Model B Rev 1.0 0x41 0xd0b"
    assert machine.cpu_flags == ("asimd", "asimddp")
    assert machine.governor == "ondemand"
    assert machine.frequency_mhz == 2400
    assert machine.cores_physical == 2
    assert machine.caches == {"L1d": 65536}
    assert machine.os == "Debian GNU/Linux 12 (bookworm)"
    assert machine.memory_bytes is None


V1 = {
    "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job/step\n",
    "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1073741824\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
}
V2 = {
    "proc/self/cgroup": "0::/user.slice/job\n",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
    "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000\n",
    "sys/fs/cgroup/user.slice/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/user.slice/job/memory.max": "1073741824\n",
    "sys/fs/cgroup/user.slice/memory.max": "max\n",
}


@pytest.mark.parametrize("files", [V1, V2], ids=["version 1", "version 2"])
def test_quotas_of_control_groups_hold_for_all_below(tmp_path: Path, files: dict[str, str]) -> None:
    root = tree(tmp_path, files)
    machine = fingerprint(root=root)
    assert machine.cpu_quota == 1.5
    assert machine.memory_limit_bytes == 2**30
    assert usable_cores(root=root) == 1


def test_an_unreadable_tree_gives_a_fingerprint_all_the_same(tmp_path: Path) -> None:
    machine = fingerprint(root=tmp_path)
    assert machine.id
    assert dataclasses.replace(machine, id="").cpu_flags == ()
    assert machine.load_average is None
    assert machine.virtualisation == ""


def test_affinity_limits_the_usable_cores() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from deploykit.machine import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1", done.stderr
