"""What a conversion costs: peak memory against the size of the model, time against the bare exporter.

    python benchmarks/conversion_cost.py [--gigabytes 3] [--repetitions 3] [--json]

Two models of float32 layers are made: an ExportedProgram of PyTorch, and an MXNet symbol with its
parameters, which deploykit reads itself. Memory is that of deploykit and all of its
processes together (resident, pages shared between them counted once for each), sampled every 20 ms.
The proof against the source is left out: it holds the model once in the framework and once in ONNX
Runtime, whoever does it. Time is that of the whole command, less that of the same command on a model
of one small part: what is left grows with the model. deploykit and a script that calls the exporter in the
same environment take turns.

Goal: memory at most 1.3 times the model, time at most 1.1 times the exporter's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

# the checkout's own deploykit, installed or not
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from deploykit import environments, plugins

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 8192

MAKE_TORCH = """
import sys, torch
width, layers = int(sys.argv[2]), int(sys.argv[3])
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x
with torch.no_grad():
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(1, width),)), sys.argv[1])
"""
BARE_TORCH = """
import sys, time, torch, onnxscript
begun = time.monotonic()
program = torch.export.load(sys.argv[1])
torch.onnx.export(program, (), sys.argv[2], dynamo=True, external_data=True, verbose=False)
print("seconds", time.monotonic() - begun)
"""


def make_torch(path: Path, layers: int) -> Path:
    """Write an ExportedProgram of `layers` square layers, in PyTorch's own environment."""
    python = environments.interpreter(plugins.converter("pytorch"), install=True)
    command = [str(python), "-c", MAKE_TORCH, str(path), str(WIDTH), str(layers)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def make_mxnet(folder: Path, layers: int) -> Path:
    """Write a symbol of `layers` FullyConnected and its parameters (NDArray V2) without MXNet.

    Format: `src/ndarray/ndarray.cc` (NDArray::Save) of Apache MXNet 1.9.
    """
    import numpy as np

    nodes: list[dict[str, Any]] = [{"op": "null", "name": "data", "inputs": []}]
    last = 0
    for number in range(layers):
        at = len(nodes)
        nodes.append({"op": "null", "name": f"fc{number}_weight", "inputs": []})
        attributes = {"num_hidden": str(WIDTH), "no_bias": "True"}
        inputs = [[last, 0, 0], [at, 0, 0]]
        nodes.append(
            {"op": "FullyConnected", "name": f"fc{number}", "attrs": attributes, "inputs": inputs}
        )
        last = at + 1
    leaves = [number for number, node in enumerate(nodes) if node["op"] == "null"]
    symbol = folder / "net-symbol.json"
    document = {"nodes": nodes, "arg_nodes": leaves, "heads": [[last, 0, 0]]}
    symbol.write_text(json.dumps({**document, "attrs": {"mxnet_version": ["int", 10901]}}))
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32) / WIDTH**0.5
    with (folder / "net-0000.params").open("wb") as stream:
        stream.write(struct.pack("<QQQ", 0x112, 0, layers))
        for _ in range(layers):
            stream.write(struct.pack("<IiIqq", 0xF993FAC9, 0, 2, WIDTH, WIDTH))
            stream.write(struct.pack("<iii", 1, 0, 0))  # on the CPU, device 0, float32
            stream.write(weights.tobytes())
        stream.write(struct.pack("<Q", layers))
        for number in range(layers):
            name = f"arg:fc{number}_weight".encode()
            stream.write(struct.pack("<Q", len(name)) + name)
    return symbol


def measured(command: list[str]) -> tuple[int, float, str]:
    """Run `command`; return the peak resident bytes of it and its children, seconds, its stdout."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = psutil.Popen(command, stdout=output, stderr=errors, cwd=ROOT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _resident(process))
            time.sleep(0.02)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command[:4])}: exit {process.returncode}\n{errors.read()}")
        return peak, time.monotonic() - begun, output.read()


def _resident(process: psutil.Popen) -> int:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        return total
    return total


def convert(model: Path, output: Path) -> tuple[int, float]:
    """Convert with deploykit, unproven; return peak bytes and the seconds of the whole command."""
    command = [sys.executable, "-m", "deploykit", "convert", str(model), "-o", str(output)]
    peak, seconds, _ = measured([*command, "--no-verify", "--quiet"])
    for path in output.parent.glob(f"{output.name}*"):
        path.unlink()
    return peak, seconds


def bare(model: Path, output: Path) -> tuple[int, float]:
    """Export with torch.onnx in PyTorch's environment; return peak bytes and seconds of the command."""
    python = environments.interpreter(plugins.converter("pytorch"), install=True)
    peak, seconds, _ = measured([str(python), "-c", BARE_TORCH, str(model), str(output)])
    for path in output.parent.glob(f"{output.name}*"):
        path.unlink()
    return peak, seconds


def cost(name: str, folder: Path, layers: int, repetitions: int) -> dict[str, Any]:
    """Measure one kind of model."""
    folder.mkdir()
    model = (
        make_mxnet(folder, layers) if name == "mxnet" else make_torch(folder / "net.pt2", layers)
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    small = folder.with_name(f"{name}-small")
    small.mkdir()
    tiny = make_mxnet(small, 1) if name == "mxnet" else make_torch(small / "net.pt2", 1)
    peaks, seconds, start, theirs, their_start = [], [], [], [], []
    for _ in range(repetitions):
        start.append(convert(tiny, folder / "out.onnx")[1])
        peak, took = convert(model, folder / "out.onnx")
        peaks.append(peak)
        seconds.append(took)
        if name == "pytorch":
            their_start.append(bare(tiny, folder / "bare.onnx")[1])
            theirs.append(bare(model, folder / "bare.onnx")[1])
    result: dict[str, Any] = {
        "model": name,
        "model_bytes": size,
        "peak_bytes": max(peaks),
        "memory_ratio": max(peaks) / size,
        "seconds": seconds,
    }
    if theirs:
        ours = [a - b for a, b in zip(seconds, start, strict=True)]
        other = [a - b for a, b in zip(theirs, their_start, strict=True)]
        ratios = [a / b for a, b in zip(ours, other, strict=True)]
        result |= {"time_ratio": median(ratios), "time_ratios": ratios}
    shutil.rmtree(folder)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["pytorch", "mxnet"])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    layers = max(2, round(given.gigabytes * 1e9 / (4 * WIDTH * WIDTH)))
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.models:
            results.append(cost(name, Path(scratch) / name, layers, given.repetitions))
            one = results[-1]
            if not given.json:
                text = (
                    f"{name}: {one['model_bytes'] / 1e9:.2f} GB, memory x{one['memory_ratio']:.2f}"
                )
                if "time_ratio" in one:
                    spread = ", ".join(f"{ratio:.2f}" for ratio in one["time_ratios"])
                    text += f", time x{one['time_ratio']:.2f} of the bare exporter's ({spread})"
                print(text, flush=True)
    if given.json:
        print(json.dumps({"results": results}, indent=2))


if __name__ == "__main__":
    main()
