"""The opset of a model, brought to what the user asks for or to what runtimes take well.

Below opset 13 ONNX Runtime, OpenVINO and TVM still read most operators, but quantisation per
channel, axes as inputs and bfloat16 are missing, and each importer has paths of its own that fewer
people use. So older models go to 17, the newest opset that all of them have taken for years. A
model of 13 or newer stays as it is: every conversion is a chance to be wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    import onnx

OLDEST_LEFT_ALONE = 13
COMFORTABLE = 17
OLDEST_THAT_RUNS = 7
"""ONNX Runtime gives no guarantee for models below it."""

STANDARD = ("", "ai.onnx")


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set, 0 where the model imports none."""
    return max((int(i.version) for i in model.opset_import if i.domain in STANDARD), default=0)


def upgrade(model: onnx.ModelProto, asked: int | None) -> tuple[onnx.ModelProto, list[str]]:
    """Return `model` in the opset `asked` for (None: our choice), and what was done, a line each.

    Raises UsageError where there is no such opset, UnsupportedError where ONNX's converter cannot
    reach it, or the model is too old to run as it is.
    """
    import onnx

    own = opset_of(model)
    newest = onnx.defs.onnx_opset_version()
    if own > newest:
        raise UnsupportedError(
            f"the model uses opset {own}, the installed onnx {onnx.__version__} knows {newest}",
            hint="install a newer onnx",
        )
    if asked is not None and not 1 <= asked <= newest:
        raise UsageError(
            f"there is no opset {asked}", hint=f"onnx {onnx.__version__} knows 1 to {newest}"
        )
    if own == 0 or asked == own or (asked is None and own >= OLDEST_LEFT_ALONE):
        return model, []
    goal = COMFORTABLE if asked is None else asked
    try:
        converted = onnx.version_converter.convert_version(model, goal)
    except Exception as error:  # RuntimeError from an assertion in C++, InferenceError, ValueError
        reason = _reason(error)
        if asked is None and own >= OLDEST_THAT_RUNS:
            return model, [f"opset {own} kept: ONNX's converter cannot reach {goal} ({reason})"]
        raise UnsupportedError(
            f"the model cannot be brought from opset {own} to {goal}: {reason}",
            hint="export it again with a newer opset"
            if goal > own
            else "ask for another `--opset`",
        ) from error
    return _restore(model, converted), [f"opset {own} brought to {goal}"]


def _restore(model: onnx.ModelProto, converted: onnx.ModelProto) -> onnx.ModelProto:
    """Undo what the converter does beside its task.

    It lists initializers as inputs, forgets metadata and keeps an IR version that is too old.
    """
    import onnx

    names = [value.name for value in model.graph.input]
    by_name = {value.name: value for value in converted.graph.input}
    inputs = [by_name[name] for name in names]
    del converted.graph.input[:]
    converted.graph.input.extend(inputs)
    del converted.graph.value_info[:]
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(converted, field, getattr(model, field))
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    needed = onnx.helper.find_min_ir_version_for(list(converted.opset_import), ignore_unknown=True)
    converted.ir_version = max(model.ir_version, needed)
    return converted


def _reason(error: BaseException) -> str:
    """Return what a C++ assertion says behind its place in the source."""
    text = " ".join(str(error).split())
    return text.rpartition("failed: ")[2] or type(error).__name__
