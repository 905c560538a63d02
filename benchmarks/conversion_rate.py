"""How many real models become ONNX, and right: deploykit beside the bare exporter of each format.

    python benchmarks/conversion_rate.py [--models FOLDER] [FORMAT or FORMAT/NAME ...] [--json]

Both get every model of the folder (see `golden_models.py`), and what they write is run in ONNX
Runtime on the golden inputs and compared with what the original framework computed. *Right* is within
atol 1e-4 (of the largest value) and rtol 1e-3; integers within one step, or what the framework's own
kernels differ by. A file that is written and
wrong is worse than a refusal, so it has a column of its own.

deploykit is called as a user would (`golden_attempts.py`): the bare command first; where it asks for
something (exit code 2 or 4), again with that; and where the golden outputs are inner tensors of a
TensorFlow graph, with these named. The bare exporter is given the golden names and shapes at once. It runs in deploykit's environment of its framework; formats
whose exporter cannot be installed today have none.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

# the checkout's own deploykit, installed or not
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import golden_attempts, golden_models
from benchmarks.golden_models import GoldenModel
from deploykit import environments, plugins
from deploykit.tensors import write_tensors

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 600

KERAS = """
import sys, tensorflow, tf2onnx
model = tensorflow.keras.models.load_model(sys.argv[1], compile=False)
tf2onnx.convert.from_keras(model, output_path=sys.argv[2], opset=17)
"""
TORCH = """
import sys, numpy, torch
feed = tuple(torch.from_numpy(array) for array in numpy.load(sys.argv[3]).values())
if sys.argv[4] == "torch_export":
    torch.onnx.export(torch.export.load(sys.argv[1]), (), sys.argv[2], dynamo=True)
else:
    torch.onnx.export(torch.jit.load(sys.argv[1]), feed, sys.argv[2], dynamo=False)
"""


def bare(model: GoldenModel, output: Path) -> list[str] | None:
    """Return the command line of the format's own exporter, None where none can be installed."""
    folder = model.folder
    tf2onnx = ["tensorflow", "-m", "tf2onnx.convert", "--opset", "17", "--output", str(output)]
    ends = ["--inputs", _ports(model.feed), "--outputs", _ports(model.expected)]
    match model.group:
        case "tf_savedmodel":
            return [*tf2onnx, "--saved-model", str(folder)]
        case "tf_frozen":
            return [*tf2onnx, "--graphdef", str(_only(folder, "*.pb")), *ends]
        case "tf_checkpoint":
            return [*tf2onnx, "--checkpoint", str(_only(folder, "*.meta")), *ends]
        case "tflite":
            return [*tf2onnx, "--tflite", str(_only(folder, "*.tflite"))]
        case "keras_h5" | "keras_v3":
            files = [path for path in folder.iterdir() if path.suffix in (".h5", ".hdf5", ".keras")]
            path = max(files, key=lambda path: path.stat().st_size)
            return ["tensorflow", "-c", KERAS, str(path), str(output)]
        case "paddle1" | "paddle2" | "paddle3":
            graph = {"paddle1": "__model__", "paddle2": "*.pdmodel", "paddle3": "*.json"}
            path = next(one for one in folder.glob(graph[model.group]) if "golden" not in one.name)
            weights = path.with_suffix(".pdiparams")
            known = ["--params_filename", weights.name] if weights.is_file() else []
            return [
                *("paddle", "-m", "paddle2onnx.command", "--model_dir", str(folder)),
                *("--model_filename", path.name, *known, "--save_file", str(output)),
            ]
        case "torch_export" | "torchscript":
            path = next(one for one in folder.iterdir() if one.suffix in (".pt", ".pt2", ".jit"))
            feed = output.with_suffix(".npz")
            write_tensors(feed, model.feed)
            return ["pytorch", "-c", TORCH, str(path), str(output), str(feed), model.group]
    return None


def _ports(tensors: dict[str, Any]) -> str:
    return ",".join(name if ":" in name else f"{name}:0" for name in tensors)


def _only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def run_bare(model: GoldenModel, output: Path) -> str:
    command = bare(model, output)
    if command is None:
        return "none"
    python = environments.interpreter(plugins.converter(command[0]), install=True)
    return _run([str(python), *command[1:]], model, output)


def run_deploykit(model: GoldenModel, output: Path) -> str:
    """Convert as a user would, and once more with what the refusal asked for."""
    found = ""
    for attempt in golden_attempts.attempts(model):
        found = _run(_command(model, attempt, output), model, output)
        if not found.startswith(("exit 2", "exit 4")):
            break
    named = golden_attempts.naming_outputs(model, attempt)
    if found.startswith("wrong: outputs") and named is not None:
        output.unlink()
        found = _run(_command(model, named, output), model, output)
    return found


def _command(model: GoldenModel, attempt: golden_attempts.Attempt, output: Path) -> list[str]:
    location = golden_attempts.location(model)
    command = [sys.executable, "-m", "deploykit", "convert", str(location), "-o", str(output), "-q"]
    command += [f"--set={key}={value}" for key, value in attempt.settings.items()]
    command += [f"--input={text}" for text in attempt.inputs]
    if attempt.sampled:
        sample = output.with_name("inputs.npz")
        write_tensors(sample, model.feed)
        command += ["--sample", str(sample)]
    return command


def _run(command: list[str], model: GoldenModel, output: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} if "deploykit" in command else None
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return f"exit 10: no end after {TIMEOUT_S} s"
    if done.returncode != 0 or not output.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()] or [""]
        line = next((line for line in said if line.startswith("error")), said[-1])
        return f"exit {done.returncode}: {line[:300]}"
    return golden_models.judge(output, model, golden_attempts.tolerance(model))


def verdict(text: str) -> str:
    """Return the column that an outcome belongs to."""
    if text.startswith(("wrong", "does not run")):
        return "wrong"
    return text if text in ("right", "none") else "refused"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wanted", nargs="*", help="formats or models; default: all")
    parser.add_argument("--models", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--no-bare", action="store_true", help="deploykit alone")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results: list[dict[str, Any]] = []
    for model in golden_models.find(given.models, tuple(given.wanted)):
        with tempfile.TemporaryDirectory() as folder:
            ours = run_deploykit(model, Path(folder) / "ours.onnx")
            theirs = "none" if given.no_bare else run_bare(model, Path(folder) / "bare.onnx")
        results.append({"model": model.name, "deploykit": ours, "bare": theirs})
        print(f"{model.name}\n  deploykit  {ours}\n  bare       {theirs}", file=sys.stderr)
    rows = []
    for group in dict.fromkeys(result["model"].partition("/")[0] for result in results):
        own = [result for result in results if result["model"].startswith(f"{group}/")]
        row: dict[str, Any] = {"format": group, "tried": len(own)}
        for side in ("deploykit", "bare"):
            counts = Counter(verdict(result[side]) for result in own)
            row[side] = (
                None
                if counts["none"] == len(own)
                else {
                    "converted": counts["right"] + counts["wrong"],
                    "right": counts["right"],
                    "wrong": counts["wrong"],
                }
            )
        rows.append(row)
    if given.json:
        print(json.dumps({"formats": rows, "models": results}, indent=2))
        return
    print(f"{'':20}{'':>7}{'deploykit':>27}{'bare exporter':>27}")
    columns = ("converted", "right", "wrong")
    print(f"{'format':20}{'tried':>7}" + "".join(f"{column:>9}" for column in columns * 2))
    for row in rows:
        cells = [
            "-" if row[side] is None else str(row[side][column])
            for side in ("deploykit", "bare")
            for column in columns
        ]
        print(f"{row['format']:20}{row['tried']:>7}" + "".join(f"{cell:>9}" for cell in cells))


if __name__ == "__main__":
    main()
