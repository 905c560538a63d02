"""The forms in which a model is kept in a payload: optimised, in the ORT format, or as it came.

A provider that compiles does so when the model is loaded, so it gets the model as it came, or the
result of its own compilation (an EPContext model) where it can give that away.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit._plugins.targets.ort import layout, nodes, session

from deploykit.errors import SourceError, UnsupportedError

if TYPE_CHECKING:
    import onnx
    import onnxruntime

MODEL = "model.onnx"
MOBILE = "model.ort"
OPERATORS = "required_operators.config"
WEIGHTS = "weights.bin"
CONTEXT = "model_ctx.onnx"

# A protobuf message ends at 2 GiB; with this much, the weights go to a file of their own.
LARGE_BYTES = 1 << 30

# A FlatBuffers file, which the ORT format is, has 32-bit signed offsets.
ORT_FORMAT_BYTES = (1 << 31) - 1


def read(path: str) -> onnx.ModelProto:
    """Return the model without what lies beside it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise SourceError(f"cannot read the ONNX model `{path}`: {error}") from error


def _beside(model: onnx.ModelProto, path: str) -> dict[str, Path]:
    """Return the files beside the model at `path` that hold weights of it, by location."""
    folder = Path(path).resolve().parent
    found = {}
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                found[entry.value] = folder / entry.value
    for location, file in found.items():
        if not file.resolve().is_relative_to(folder) or not file.is_file():
            raise SourceError(f"`{path}` has weights in `{location}`, which is not beside it")
    return found


def optimised(
    model: onnx.ModelProto,
    path: str,
    payload: Path,
    options: onnxruntime.SessionOptions,
    *,
    edited: bool,
    without: Sequence[str],
) -> onnxruntime.InferenceSession:
    """Let ONNX Runtime optimise the model for its CPU device and save the result to the payload.

    `edited` says that `model` differs from the file at `path`. Returns the session that did it.
    """
    apart = Path(path).stat().st_size > LARGE_BYTES or bool(_beside(model, path))
    options.optimized_model_filepath = str(payload / MODEL)
    options.log_severity_level = 3  # it warns of the processor-bound layout, which we record
    if apart:  # else the saved graph would still name the model's own file
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", WEIGHTS
        )
    return _opened(model, path, options, edited=edited, without=without)


def mobile(
    model: onnx.ModelProto,
    path: str,
    payload: Path,
    options: onnxruntime.SessionOptions,
    *,
    edited: bool,
) -> onnxruntime.InferenceSession:
    """Save the model in the ORT format, and the operators that a build of ONNX Runtime needs for it.

    Raises UnsupportedError where it is too large for the format.
    """
    size = sum(file.stat().st_size for file in (Path(path), *_beside(model, path).values()))
    if size > ORT_FORMAT_BYTES:
        raise UnsupportedError(
            f"the ORT format ends at 2 GiB, and the model has {size} bytes",
            hint="use format=onnx",
        )
    options.optimized_model_filepath = str(payload / MOBILE)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 3
    # phones have other processors than the machine that compiles
    made = _opened(model, path, options, edited=edited, without=[layout.OPTIMISER])
    _write_operators(payload)
    return made


def _write_operators(payload: Path) -> None:
    """Write the operators and types of the ORT file, as ONNX Runtime's own build script takes them."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    path = payload / OPERATORS
    temporary = payload / f"{OPERATORS}.tmp"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # it leaves the file to be closed by itself
        create_config_from_models([payload / MOBILE], temporary, True)
    # it begins with the paths of this machine
    lines = temporary.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("#")]
    path.write_text("\n".join([f"# operators and types of {MOBILE}", *kept]) + "\n", "utf-8")
    temporary.unlink()


def _opened(
    model: onnx.ModelProto,
    path: str,
    options: onnxruntime.SessionOptions,
    *,
    edited: bool,
    without: Sequence[str],
) -> onnxruntime.InferenceSession:
    if not edited:
        return session.open_model(path, options, path, without=without)
    # From memory, because the weights of a model may lie beside it where we must not write.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(Path(path).resolve().parent)
    )
    return session.open_model(model.SerializeToString(), options, path, without=without)


def about(payload: Path, model: onnx.ModelProto) -> list[str]:
    """Write what the saved graph's operations stand for and which processors it fits; return notes."""
    import onnx

    saved = onnx.load(str(payload / MODEL), load_external_data=False)
    nodes.write(payload, saved, model)
    return layout.note(saved, payload)


def as_it_came(model: onnx.ModelProto, path: str, payload: Path, *, edited: bool) -> None:
    """Write the model to the payload unoptimised; weights beside it are copied, never loaded."""
    import onnx

    for location, file in _beside(model, path).items():
        copy = payload / location
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    target = payload / MODEL
    if not edited:
        shutil.copyfile(path, target)
    elif model.ByteSize() > LARGE_BYTES:
        onnx.save(model, target, save_as_external_data=True, location=WEIGHTS)
    else:
        onnx.save(model, target)
