"""Which format a file has, by its content, and which reader is for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from deploykit.errors import SourceError
from deploykit.formats import (
    caffe_files,
    checkpoint_index,
    foreign,
    onnx_file,
    paddle_parameters,
    paddle_program,
    safetensors_file,
    saved_model,
    tensorflow_checkpoint,
    tensorflow_graph,
    tflite,
)
from deploykit.formats.content import Content
from deploykit.formats.reading import Reading

READERS = {
    "onnx": "onnx_file.read",
    "pytorch/exported_program": "torch_archive.read",
    "pytorch/torchscript": "torch_archive.read",
    "pytorch/lite": "torch_archive.read",
    "pytorch/state_dict": "torch_pickle.read",
    "tensorflow/saved_model": "saved_model.read",
    "tensorflow/graph_def": "tensorflow_graph.read",
    "tensorflow/checkpoint": "tensorflow_checkpoint.read",
    "tensorflow/tflite": "tflite.read",
    "paddle/program": "paddle_program.read",
    "paddle/fluid": "paddle_program.read",
    "paddle/pir": "paddle_pir.read",
    "keras/hdf5": "keras_files.read_hdf5",
    "keras/json": "keras_files.read_json",
    "keras/yaml": "keras_files.read_yaml",
    "keras/v3": "keras_files.read_archive",
    "mxnet/symbol": "mxnet_files.read",
    "caffe/caffemodel": "caffe_files.read_caffe",
    "caffe2/net": "caffe_files.read_caffe2",
    "cntk/v1": "foreign.read_cntk1",
    "cntk/v2": "foreign.read_cntk2",
    "coreml/mlmodel": "foreign.read_coreml",
    "xdl/graph": "foreign.read_xdl",
    "theano/parameters": "numpy_pickle.read",
    "scikit-learn/pickle": "scikit_learn_files.read_pickle",
    "scikit-learn/skops": "scikit_learn_files.read_skops",
    "xgboost/model": "scikit_learn_files.read_xgboost",
    "lightgbm/model": "scikit_learn_files.read_lightgbm",
}
"""The function that reads each format of files, imported when it is needed: zip, json and pickle
cost more time than everything else here."""

PARTS = {
    "Paddle parameters": "its program (`.pdmodel`, `.json` or `__model__`)",
    "MXNet parameters": "its symbol (`-symbol.json`)",
    "Keras weights": "its configuration (`.json` or `.yaml`)",
}
"""Files that are a part of a model, and what the other part is."""

FLATBUFFER_LITE = b"PTMF"
"""Where a lite interpreter's file is a FlatBuffer and no zip archive: its identifier."""

PROTOBUFS: tuple[tuple[str, Callable[[Content], bool]], ...] = (
    ("xdl/graph", foreign.recognises_xdl_binary),
    ("tensorflow/saved_model", saved_model.recognises),
    ("onnx", onnx_file.recognises),
    ("paddle/program", paddle_program.recognises),
    ("tensorflow/graph_def", tensorflow_graph.recognises),
    ("tensorflow/checkpoint", tensorflow_checkpoint.recognises),
    ("caffe/caffemodel", caffe_files.recognises_caffe),
    ("caffe2/net", caffe_files.recognises_caffe2),
    ("cntk/v2", foreign.recognises_cntk2),
    ("coreml/mlmodel", foreign.recognises_coreml),
)
"""Protocol buffers have no magic number: the first whose shape fits the beginning of the file."""


def reader(format: str) -> Callable[[Content], Reading]:
    """Return the function that reads files of `format`."""
    module, _, name = READERS[format].partition(".")
    found: Callable[[Content], Reading] = getattr(
        importlib.import_module(f"deploykit.formats.{module}"), name
    )
    return found


def classify(content: Content) -> str | None:
    """Return what the file is, a key of READERS or PARTS, None where nobody knows it."""
    first = content.view[0]
    if tflite.recognises(content):
        return "tensorflow/tflite"
    if content.starts_with(b"PK\x03\x04"):
        return _zip(content)
    if first == 0x89:
        return _hdf5(content)
    if foreign.recognises_cntk1(content):
        return "cntk/v1"
    if safetensors_file.recognises(content):
        return "pytorch/state_dict"
    if content.view[4:8] == FLATBUFFER_LITE:
        return "pytorch/lite"
    if checkpoint_index.recognises(content):
        return "tensorflow/checkpoint"
    if found := _trees(content):
        return found
    if first in b"{ \t\r\n" and (found := _json(content)):
        return found
    if foreign.recognises_xdl(content):
        return "xdl/graph"
    if caffe_files.recognises_prototxt(content):
        return "caffe/caffemodel"
    if first in b"bck" and _is_keras_yaml(content):
        return "keras/yaml"
    if first in b"\x80(c]}l" and _is_pickle(content):
        return "pytorch/state_dict"
    if first == 0x12 and _is_mxnet(content):
        return "MXNet parameters"
    if first == 0 and paddle_parameters.recognises(content):
        return "Paddle parameters"
    return next((name for name, recognises in PROTOBUFS if recognises(content)), None)


def part_alone(content: Content, part: str) -> SourceError:
    """Return the error for a file that is only a part of a model."""
    return SourceError(
        f"`{content.path}` holds {part} and no graph: {PARTS[part]} is missing",
        hint="name the graph's file, or the folder that holds both",
    )


def _zip(content: Content) -> str | None:
    from deploykit.formats.torch_archive import format_of
    from deploykit.formats.zip_archive import Archive

    with Archive(content) as archive:
        is_keras = "config.json" in archive and "metadata.json" in archive
        if (found := format_of(archive)) is not None:
            return found
        from deploykit.formats.scikit_learn_files import recognises_skops

        if recognises_skops(archive):
            return "scikit-learn/skops"
        return "keras/v3" if is_keras else None


def _trees(content: Content) -> str | None:
    if content.view[0] not in b"{ \t\r\nt\x80\x78\x1fB\xfd":
        return None
    from deploykit.formats import scikit_learn_files

    if scikit_learn_files.recognises_xgboost(content):
        return "xgboost/model"
    if scikit_learn_files.recognises_lightgbm(content):
        return "lightgbm/model"
    return "scikit-learn/pickle" if scikit_learn_files.recognises_pickle(content) else None


def _hdf5(content: Content) -> str | None:
    from deploykit.formats import keras_files

    if keras_files.recognises_hdf5(content):
        return "keras/hdf5"
    return "Keras weights" if keras_files.recognises_weights(content) else None


def _json(content: Content) -> str | None:
    from deploykit.formats import keras_files, mxnet_files, paddle_pir

    if paddle_pir.recognises(content):
        return "paddle/pir"
    if mxnet_files.recognises_symbol(content):
        return "mxnet/symbol"
    return "keras/json" if keras_files.recognises_json(content) else None


def _is_keras_yaml(content: Content) -> bool:
    from deploykit.formats import keras_files

    return keras_files.recognises_yaml(content)


def _is_pickle(content: Content) -> bool:
    from deploykit.formats import torch_pickle

    return torch_pickle.recognises(content)


def _is_mxnet(content: Content) -> bool:
    from deploykit.formats import mxnet_files

    return mxnet_files.recognises_parameters(content)
