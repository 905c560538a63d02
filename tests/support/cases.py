"""The real models of the support table: how to read each, and what each target makes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.tensors import read_tensors


def golden_tensors(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the golden inputs and outputs of a shared model, by the model's tensor names."""
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    tensors = read_tensors(folder / "golden.npz")
    feed, expected = (
        {tensor: tensors[f"{side}_{key}"] for key, tensor in names[side].items()}
        for side in ("in", "out")
    )
    return feed, expected


TARGETS = ("onnxruntime", "openvino", "tvm")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shared model.

    `fixed` compiles for the sizes of the golden inputs, `sampled` verifies on them alone (random
    ones make no sense to the model). `atol` and `steps` widen the tolerance where the framework's
    own kernels differ by as much. `cannot` has, by target, a part of the reason why it cannot or is wrong;
    under `convert` why the model does not become ONNX at all.
    """

    folder: str
    what: str
    inputs: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    fixed: bool = False
    sampled: bool = False
    atol: float = 1e-4
    steps: int = 0
    cannot: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.partition("/")[2]


CASES = (
    Case(folder="torch_export/derived_ultraface_rfb320", what="face detector, two outputs"),
    Case(
        folder="torchscript/derived_ultraface_slim320_traced",
        what="face detector, traced",
        inputs=("x:float32[1,3,240,320]",),
    ),
    Case(
        folder="torchscript/silero_vad_mini_v2",
        what="speech detector of 2021",
        inputs=("x:float32[1,4000]",),
    ),
    Case(folder="tf_savedmodel/half_plus_two_tf1", what="TensorFlow 1 export"),
    Case(folder="tf_savedmodel/half_plus_two_tf2", what="TensorFlow 2 export"),
    Case(folder="tf_savedmodel/mlperf_kws_dscnn", what="keyword spotting, separable convolutions"),
    Case(
        folder="tf_savedmodel/dtln_stateful",
        what="speech enhancement with state, its first call",
        cannot={"tvm": "LSTM"},
    ),
    Case(
        folder="tf_frozen/kws_ds_cnn_s",
        what="keyword spotting, cut after its features",
        settings={"inputs": "Reshape:0"},
    ),
    Case(
        folder="tf_frozen/t2o_lstm",
        what="recurrent network (LSTM)",
        inputs=("keep_prob:float32[]",),
        sampled=True,
    ),
    Case(folder="tflite/mlperf_vww96_float", what="MobileNetV1, visual wake words"),
    Case(
        folder="tflite/dtln_1",
        what="recurrent network with explicit state, two inputs",
    ),
    Case(
        folder="tflite/mlperf_resnet8_cifar_int8",
        what="ResNet-8, int8",
        steps=21,
        sampled=True,
        cannot={"openvino": "differ"},
    ),
    Case(folder="paddle2/ppocr_cls_v2", what="text direction, dynamic sizes", fixed=True),
    Case(
        folder="paddle2/ppocr_det_v3_ch",
        what="text detector, dynamic sizes",
        fixed=True,
        sampled=True,
    ),
    Case(folder="paddle3/derived_ppocr_cls_v2_pir", what="the same as PIR", fixed=True),
    Case(folder="onnx/optimum_tiny_bert", what="attention, two inputs"),
    Case(
        folder="onnx/dtln_1",
        what="recurrent network with explicit state, two inputs",
        cannot={"tvm": "LSTM"},
    ),
    Case(
        folder="onnx/silero_vad_v5",
        what="speech detector, control flow, three inputs",
        sampled=True,
        cannot={"openvino": "Conv", "tvm": "LSTM"},
    ),
    Case(folder="onnx/espcn_x3_nnresize_float", what="super-resolution"),
    Case(folder="onnx/mnist_conv_o8", what="small convolutional network, opset 8"),
    Case(
        folder="onnx/dl4j_sm_cnn",
        what="a file older than ONNX 1.0",
        cannot={"convert": "older than ONNX 1.0"},
    ),
)
