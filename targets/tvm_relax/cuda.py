"""Code for NVIDIA's GPUs: made by nvcc, without a GPU or its driver on the machine that compiles.

TVM puts the kernels into an object of its CUDA runtime, a library that loads only where NVIDIA's
driver library is. Where that is missing, a stand-in with the same names is loaded in its place, as
NVIDIA's own toolkit has for linking: every function of it says that there is no device.

Untested on a GPU: what was seen is that the library holds code for the architectures asked for.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.tvm_relax import linking, runtime

from deploykit.errors import PluginError, UnavailableError, UnsupportedError

if TYPE_CHECKING:
    from deploykit._plugins.targets.tvm_relax.machine import Processor

    from deploykit.protocol import Hardware

# Where nothing else is said: A100 and its kin, H100. PTX of the first serves all later ones.
ARCHITECTURES = ("sm_80", "sm_90")
UNTUNED = "not tuned, and this target has not been seen on a GPU: TVM's own rules for GPUs"

# CUDA_ERROR_NO_DEVICE of the driver's header.
NO_DEVICE = 100
LIMITS = {
    "max_threads_per_block": 1024,
    "max_shared_memory_per_block": 49152,
    "thread_warp_size": 32,
}


def missing_to_compile() -> str | None:
    """Return what is missing here to compile for CUDA, None where nothing is."""
    if nvcc() is None:
        return "nvcc of NVIDIA's CUDA toolkit 12 or newer, on PATH or under $CUDA_HOME"
    return None


def missing_to_run() -> str | None:
    """Return what is missing here to run on a GPU, None where nothing is."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "NVIDIA's driver (libcuda.so.1)"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "a GPU that NVIDIA's driver finds"
    try:
        runtime.start("cuda")
    except UnavailableError as error:
        return str(error)
    return None


def nvcc() -> str | None:
    """Return the compiler: on PATH, else of the toolkit that CUDA_HOME or CUDA_PATH names."""
    found = shutil.which("nvcc")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if found is None and os.environ.get(name):
            found = shutil.which("nvcc", path=str(Path(os.environ[name]) / "bin"))
    return found


def architectures(hardware: Hardware | None) -> tuple[str, ...]:
    """Return the GPUs to make code for: the hardware's, else those of `ARCHITECTURES`.

    Raises UnsupportedError for one that is not NVIDIA's.
    """
    if hardware is None or not hardware.gpu:
        return ARCHITECTURES
    if not re.fullmatch(r"sm_\d{2,3}[a-z]?", hardware.gpu):
        raise UnsupportedError(
            f"target tvm:cuda cannot compile for the GPU `{hardware.gpu}` of {hardware.name}",
            hint="NVIDIA's architectures are called sm_80, sm_90 and so on",
        )
    return (hardware.gpu,)


def target(host: Processor, names: Sequence[str]) -> Any:
    """Return TVM's target for the least of the GPUs `names`, driven by the processor `host`."""
    import tvm

    return tvm.target.Target(
        {"kind": "cuda", "arch": min(names, key=_number), **LIMITS}, host=host.target
    )


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def scheduled(module: Any) -> Any:
    """Return the module with its kernels bound to the GPU's threads, by TVM's own rules (dlight)."""
    from tvm.s_tir import dlight

    rules = (
        dlight.gpu.Matmul(),
        dlight.gpu.GEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    )
    return dlight.ApplyDefaultSchedule(*rules)(module)


def prepare(names: Sequence[str]) -> None:
    """Let TVM compile kernels for all of `names` by nvcc, and load its CUDA runtime.

    Raises UnavailableError where one of them cannot be had.
    """
    import tvm_ffi

    lacking = missing_to_compile()
    if lacking:
        raise UnavailableError(f"target tvm:cuda needs {lacking}")
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
    except OSError:
        _stand_in_for_the_driver()
    runtime.start("cuda")
    tvm_ffi.register_global_func(
        "tvm_callback_cuda_compile", lambda code: compiled(code, names), override=True
    )


def compiled(code: str, names: Sequence[str]) -> bytes:
    """Return the CUDA source `code` as one file with machine code for each GPU, and PTX for later ones.

    Raises UnsupportedError where nvcc knows no such GPU, PluginError where it fails otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="deploykit-cuda-") as place:
        source, made = Path(place, "kernels.cu"), Path(place, "kernels.fatbin")
        source.write_text(code, encoding="utf-8")
        options = []
        for name in names:
            options += ["-gencode", f"arch=compute_{name[3:]},code={name}"]
        least = min(names, key=_number)[3:]
        options += ["-gencode", f"arch=compute_{least},code=compute_{least}"]
        command = [str(nvcc()), "-fatbin", "-O3", "-std=c++17", *options, "-o", str(made)]
        done = subprocess.run(
            [*command, str(source)], capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
            if "Unsupported gpu architecture" in done.stderr:
                raise UnsupportedError(f"nvcc knows no such GPU: {reason}")
            raise PluginError(f"nvcc failed: {reason}")
        return made.read_bytes()


def _stand_in_for_the_driver() -> None:
    """Load a library that goes by the driver's name and has the functions that TVM asks for."""
    library = runtime.folder() / "libtvm_runtime_cuda.so"
    try:
        content = library.read_bytes()
    except OSError as error:
        raise UnavailableError(
            f"this build of TVM has no CUDA runtime: {error}", hint="install apache-tvm anew"
        ) from error
    asked = {name.decode() for name in re.findall(rb"\bcu(?!da)[A-Z]\w+", content)}
    names = sorted(asked | {"cuInit", "cuDeviceGetCount"})
    code = "".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in names)
    with tempfile.TemporaryDirectory(prefix="deploykit-cuda-") as place:
        source, made = Path(place, "driver.c"), Path(place, "libcuda.so.1")
        source.write_text(code, encoding="utf-8")
        linking.share(source, made, options=["-Wl,-soname,libcuda.so.1"])
        ctypes.CDLL(str(made), ctypes.RTLD_GLOBAL)
