"""Every shared model is recognised as what its manifest says it is."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

from deploykit.formats import inspect

FORMATS = {
    "caffe": "caffe/caffemodel",
    "caffe2": "caffe2/net",
    "coreml": "coreml/mlpackage",
    "keras_h5": "keras/hdf5",
    "keras_json_weights": "keras/json",
    "keras_v3": "keras/v3",
    "mxnet": "mxnet/symbol",
    "onnx": "onnx",
    "paddle1": "paddle/fluid",
    "paddle2": "paddle/program",
    "paddle3": "paddle/pir",
    "pytorch": "pytorch/state_dict",
    "tf_checkpoint": "tensorflow/checkpoint",
    "tf_frozen": "tensorflow/graph_def",
    "tf_savedmodel": "tensorflow/saved_model",
    "tflite": "tensorflow/tflite",
    "torch_export": "pytorch/exported_program",
    "torch_lite": "pytorch/lite",
    "torchscript": "pytorch/torchscript",
}
WITH_SIGNATURE = ("onnx", "paddle/", "tensorflow/", "pytorch/exported", "pytorch/torchscript")


def expected(row: dict[str, str]) -> str:
    if row["format"] == "cntk":
        return "cntk/" + row["name"].split("_")[0]
    if row["format"] == "xdl":
        return "xdl/checkpoint" if row["name"].startswith("ps_checkpoint") else "xdl/graph"
    return FORMATS[row["format"]]


def names(folder: Path, direction: str) -> set[str]:
    golden = folder / "golden.json"
    if not golden.is_file():
        return set()
    return set(json.loads(golden.read_text())["tensor_names"][direction].values())


def test_every_folder_is_recognised(shared_models: Path) -> None:
    wrong = []
    with (shared_models / "MANIFEST.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    folders = [(row, shared_models / row["format"] / row["name"]) for row in rows]
    present = [(row, folder) for row, folder in folders if folder.is_dir()]
    assert len(present) > 50
    started = time.perf_counter()
    for row, folder in present:
        found = inspect(folder)
        if found.format != expected(row):
            wrong.append(f"{folder}: {found.format}")
        if found.format.startswith(WITH_SIGNATURE):
            assert found.signature is not None, folder
            assert found.operators, folder
            assert found.parameters, folder
    assert not wrong
    # milliseconds each in a warm process; the bound is for a busy machine
    assert (time.perf_counter() - started) / len(present) < 0.3


def test_names_are_those_of_the_frameworks(shared_models: Path) -> None:
    for kind in ("onnx", "paddle1", "paddle2", "paddle3", "tflite", "tf_savedmodel"):
        for folder in sorted((shared_models / kind).iterdir()):
            found = inspect(folder)
            assert found.signature is not None
            if inputs := names(folder, "in"):
                assert {spec.name for spec in found.signature.inputs} >= inputs, folder
                assert {spec.name for spec in found.signature.outputs} >= names(folder, "out"), (
                    folder
                )
