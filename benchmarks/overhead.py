"""What deploykit adds to an inference: `deploykit.load(bundle).run` against the bare runtime call.

    python benchmarks/overhead.py [--target onnxruntime|openvino] [--seconds 20] [--json]

Both run the same compiled file with the same threads in one process, in interleaved blocks whose
order is drawn. The blocks are spread over several pairs of freshly loaded sessions, since where a
session's memory happens to lie can cost a percent as long as it lives.

Goals: a ratio of at most 1.02 for a large model, at most 10 microseconds added to a small one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# the checkout's own deploykit, installed or not
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import deploykit
from benchmarks import sample_models
from deploykit import statistics
from deploykit.errors import DeploykitError
from deploykit.machine import fingerprint
from deploykit.options import Conditions
from deploykit.protocol import to_json

BLOCK_S = 0.03
BLOCK_RUNS = 3
SETTLE_S = 0.01
PAIRS = 5

Call = Callable[[dict[str, Any]], Any]


def bare_onnxruntime(payload: Path, threads: int) -> Call:
    """Return ONNX Runtime's own call on the model that the bundle holds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        payload / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    return lambda feed: session.run(None, feed)


def bare_openvino(payload: Path, threads: int) -> Call:
    """Return OpenVINO's own call on the blob that the bundle holds; outputs are copies, as ours."""
    import openvino

    configuration = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    blob = (payload / "model.blob").read_bytes()
    request = openvino.Core().import_model(blob, "CPU", configuration).create_infer_request()
    return lambda feed: request.infer(feed, share_inputs=True, share_outputs=False)


BARE = {"onnxruntime": bare_onnxruntime, "openvino": bare_openvino}


def block(call: Call, feed: dict[str, Any], seconds: float, *, runs: int = 1) -> list[int]:
    """Return the latencies in ns of as many calls as fit, and of `runs` at least."""
    clock = time.perf_counter_ns
    latencies: list[int] = []
    end = clock() + int(seconds * 1e9)
    while True:
        begun = clock()
        call(feed)
        ended = clock()
        latencies.append(ended - begun)
        if ended >= end and len(latencies) >= runs:
            return latencies


def measure(bundle: Path, target: str, threads: int, seconds: float, seed: int) -> dict[str, Any]:
    """Return both p50s, their ratio with its interval, and the time added per call."""
    draw = random.Random(seed)
    rounds: dict[str, list[list[int]]] = {"deploykit": [], "bare": []}
    with deploykit.load(bundle, threads=threads) as session:
        shape = [size for size in session.inputs[0].shape or () if isinstance(size, int)]
    feed = {"x": np.random.default_rng(seed).random(shape, dtype=np.float32)}
    for _ in range(PAIRS):
        loaders: dict[str, Callable[[], Any]] = {
            "bare": lambda: BARE[target](bundle / "payload", threads),
            "deploykit": lambda: deploykit.load(bundle, threads=threads, isolated=False),
        }
        loaded = {name: loaders[name]() for name in draw.sample(sorted(loaders), 2)}
        calls: dict[str, Call] = {"bare": loaded["bare"], "deploykit": loaded["deploykit"].run}
        for call in calls.values():
            block(call, feed, 0.3)
        end = time.monotonic() + seconds / PAIRS
        while time.monotonic() < end:
            for name in draw.sample(sorted(calls), 2):
                block(calls[name], feed, SETTLE_S)
                rounds[name].append(block(calls[name], feed, BLOCK_S, runs=BLOCK_RUNS))
        loaded["deploykit"].close()
    ratio = statistics.ratio_of_medians(rounds["deploykit"], rounds["bare"], seed=seed)
    ours, theirs = (np.array(statistics.medians(rounds[name])) for name in ("deploykit", "bare"))
    added = ours - theirs
    return {
        "target": target,
        "rounds": len(added),
        "bare_p50_us": float(np.median(np.concatenate(rounds["bare"]))) / 1e3,
        "deploykit_p50_us": float(np.median(np.concatenate(rounds["deploykit"]))) / 1e3,
        "ratio": None if ratio is None else to_json(ratio),
        "added_us": float(np.median(added)) / 1e3,
        "added_us_p10_p90": [float(x) / 1e3 for x in np.percentile(added, [10, 90])],
        "bare_noise": statistics.noise(rounds["bare"]),
    }


def main() -> int:
    """Compile the models, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=sorted(BARE), action="append")
    parser.add_argument("--model", choices=("small", "large"), action="append")
    parser.add_argument("--seconds", type=float, default=20.0, help="per model and target")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in asked.model or ("small", "large"):
            targets = asked.target or ["onnxruntime"]
            compilation = deploykit.compile(
                getattr(sample_models, model)(folder),
                targets,
                folder / model,
                conditions=Conditions(threads=asked.threads),
            )
            for bundle in compilation.bundles:
                if bundle.folder is None:
                    print(f"{bundle.target}: {bundle.outcome}", file=sys.stderr)
                    return 1
                measured = measure(
                    Path(bundle.folder), bundle.target, asked.threads, asked.seconds, asked.seed
                )
                results.append({"model": model, "threads": asked.threads, **measured})
    if asked.json:
        print(json.dumps({"machine": to_json(fingerprint()), "results": results}, indent=2))
        return 0
    for result in results:
        ratio = result["ratio"]
        shown = "too few rounds for a ratio"
        if ratio is not None:
            shown = f"ratio {ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        low, high = result["added_us_p10_p90"]
        print(
            f"{result['model']} on {result['target']}: bare {result['bare_p50_us']:.1f} us, "
            f"deploykit {result['deploykit_p50_us']:.1f} us, {shown}, "
            f"added {result['added_us']:.1f} us (80 % of {result['rounds']} rounds: "
            f"{low:.1f} to {high:.1f})"
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DeploykitError as error:
        sys.exit(f"error: {error.message}")
