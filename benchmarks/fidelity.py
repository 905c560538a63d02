"""Whether deploykit's p50 is that of others: OpenVINO's `benchmark_app`, a bare ONNX Runtime loop.

    python benchmarks/fidelity.py [--model FILE.onnx] [--repetitions 10] [--seconds 3] [--json]

Each repetition runs, in an order drawn anew and each in processes of its own: `deploykit.profile` of
both bundles together (interleaved rounds), `benchmark_app` on the ONNX file, and a plain loop
around `InferenceSession.run`. All with the same threads, in fp32, one inference at a time
(OpenVINO's latency hint, synchronous). The ratio is taken within repetitions, so what the machine
does to all of them cancels.

Goal: deploykit's p50 within 3 % of each.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

# the checkout's own deploykit, installed or not
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import deploykit
from benchmarks import sample_models
from deploykit import statistics
from deploykit.errors import DeploykitError
from deploykit.machine import fingerprint
from deploykit.options import Conditions
from deploykit.profiling import Load
from deploykit.protocol import to_json

# a process of its own, with nothing of deploykit in it
BARE_LOOP = """
import sys, time
import numpy, onnxruntime
path, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
random = numpy.random.default_rng(0)
feed = {x.name: random.random(x.shape, dtype=numpy.float32) for x in session.get_inputs()}
clock = time.perf_counter
for limit in (0.2 * seconds, seconds):
    latencies, end = [], clock() + limit
    while clock() < end:
        begun = clock()
        session.run(None, feed)
        latencies.append(clock() - begun)
print(1e3 * numpy.median(latencies))
"""


def bare_onnxruntime(model: Path, threads: int, seconds: float) -> float:
    """Return the p50 in ms of a plain loop in a fresh process."""
    arguments = [sys.executable, "-c", BARE_LOOP, str(model), str(threads), str(seconds)]
    return float(_output(arguments, seconds))


def benchmark_app(model: Path, threads: int, seconds: float) -> float:
    """Return the median latency in ms that OpenVINO's own tool reports, in steps of 0.01 ms."""
    with tempfile.TemporaryDirectory() as folder:
        call = "from openvino.tools.benchmark.main import main; main()"
        # the tool refuses a hint and a number of threads together as options, not in a file
        configuration = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(threads),
        }
        file = Path(folder, "configuration.json")
        file.write_text(json.dumps({"CPU": configuration}), encoding="utf-8")
        options = {
            "-m": str(model),
            "-d": "CPU",
            "-hint": "latency",
            "-api": "sync",
            "-load_config": str(file),
            "-t": str(max(1, round(seconds))),
            "-latency_percentile": "50",
            "-report_type": "no_counters",
            "-report_folder": folder,
        }
        flat = [word for option in options.items() for word in option]
        _output([sys.executable, "-c", call, *flat, "-json_stats"], seconds)
        report = json.loads(Path(folder, "benchmark_report.json").read_text(encoding="utf-8"))
    return float(report["execution_results"]["latency (ms)"])


def _output(arguments: list[str], seconds: float) -> str:
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=120 + 3 * seconds, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {arguments[2][:60]}… failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def compare(model: Path, folder: Path, asked: argparse.Namespace) -> dict[str, list[float]]:
    """Return the p50s in ms by tool, one for each repetition."""
    targets = ["onnxruntime", "openvino"]
    conditions = Conditions(threads=asked.threads)
    compiled = deploykit.compile(model, targets, folder / "bundles", conditions=conditions)
    bundles = []
    for bundle in compiled.bundles:
        if bundle.folder is None:
            raise SystemExit(f"error: {bundle.target}: {bundle.outcome}")
        bundles.append(bundle.folder)

    def profile() -> dict[str, float]:
        load = Load(duration_s=asked.seconds)
        report = deploykit.profile(bundles=bundles, load=load, conditions=conditions)
        found = {f"deploykit {m.target}": m.latency_p50_ms for m in report.measurements}
        missing = [m.outcome for m in report.measurements if m.latency_p50_ms is None]
        if missing:
            raise SystemExit(f"error: deploykit could not measure: {', '.join(missing)}")
        return {name: p50 for name, p50 in found.items() if p50 is not None}

    tools: dict[str, Callable[[], dict[str, float]]] = {
        "profile": profile,
        "loop": lambda: {"loop onnxruntime": bare_onnxruntime(model, asked.threads, asked.seconds)},
        "app": lambda: {
            "benchmark_app openvino": benchmark_app(model, asked.threads, asked.seconds)
        },
    }
    draw = random.Random(asked.seed)
    p50s: dict[str, list[float]] = {}
    for number in range(asked.repetitions):
        for tool in draw.sample(sorted(tools), len(tools)):
            for name, p50 in tools[tool]().items():
                p50s.setdefault(name, []).append(p50)
        shown = ", ".join(f"{name} {values[-1]:.3f}" for name, values in sorted(p50s.items()))
        print(f"{number + 1}/{asked.repetitions}: {shown} ms", file=sys.stderr)
    return p50s


def judged(p50s: dict[str, list[float]], ours: str, theirs: str, seed: int) -> dict[str, Any]:
    """Return our p50 relative to theirs, over the repetitions, with its interval and spread."""
    blocks = [[[round(1e6 * p50)] for p50 in p50s[name]] for name in (ours, theirs)]
    ratio = statistics.ratio_of_medians(*blocks, seed=seed)
    each = sorted(a / b for a, b in zip(p50s[ours], p50s[theirs], strict=True))
    return {
        "ours": ours,
        "theirs": theirs,
        "p50_ms": [median(p50s[name]) for name in (ours, theirs)],
        "ratio": median(each),
        "interval": None if ratio is None else [ratio.low, ratio.high],
        "smallest": each[0],
        "largest": each[-1],
    }


def main() -> int:
    """Compile, measure by all three, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="an ONNX file with fixed shapes, float32 inputs")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each tool and repetition")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = asked.model or sample_models.large(folder)
        p50s = compare(model, folder, asked)
    results = [
        judged(p50s, "deploykit onnxruntime", "loop onnxruntime", asked.seed),
        judged(p50s, "deploykit openvino", "benchmark_app openvino", asked.seed),
    ]
    if asked.json:
        about = {"machine": to_json(fingerprint()), "threads": asked.threads, "p50s_ms": p50s}
        print(json.dumps({**about, "results": results}, indent=2))
        return 0
    for result in results:
        bounds = result["interval"]
        shown = "" if bounds is None else f" [{bounds[0]:.3f}, {bounds[1]:.3f}]"
        print(
            f"{result['ours']} / {result['theirs']}: {result['ratio']:.3f}{shown}, "
            f"single repetitions from {result['smallest']:.3f} to {result['largest']:.3f} "
            f"(p50 {result['p50_ms'][0]:.3f} and {result['p50_ms'][1]:.3f} ms)"
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DeploykitError as error:
        sys.exit(f"error: {error.message}")
