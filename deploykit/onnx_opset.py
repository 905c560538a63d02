"""The opset of a model, brought to what the user asks for or to what runtimes take well.

Below opset 13 ONNX Runtime, OpenVINO and TVM still read most operators, but quantisation per
channel, axes as inputs and bfloat16 are missing, and each importer has paths of its own that fewer
people use. So older models go to 17, the newest opset that all of them have taken for years. A
model of 13 or newer stays as it is: every conversion is a chance to be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    import onnx.inliner

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
        _refuse_changed(model, own, goal)
        # the converter loses functions and calls of them, so that their bodies take their place
        whole = onnx.inliner.inline_local_functions(model, True) if model.functions else model
        converted = onnx.version_converter.convert_version(whole, goal)
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
    _keep_sampling(converted, own, goal)
    done = [f"opset {own} brought to {goal}"]
    if model.functions:
        done.insert(0, f"calls of {len(model.functions)} local functions replaced by their bodies")
    return _restore(model, converted), done


CHANGED_MEANING = {"Hardmax": 13, "Scan": 9, "GroupNormalization": 21}
"""Operators whose meaning changed with an opset, and ONNX's converter passes over it."""


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from _nodes(inner)


def _refuse_changed(model: onnx.ModelProto, own: int, goal: int) -> None:
    """Raise ValueError where an operator would compute something else in `goal`."""
    inner = [node for function in model.functions for node in function.node]
    for node in [*_nodes(model.graph), *inner]:
        changed = CHANGED_MEANING.get(node.op_type)
        if changed and node.domain in STANDARD and own < changed <= goal:
            raise ValueError(f"failed: {node.op_type} changed its meaning in opset {changed}")


def _keep_sampling(converted: onnx.ModelProto, own: int, goal: int) -> None:
    """Say how a Resize samples where it was an Upsample or Resize that could not.

    Those of opset 10 and before divide coordinates by the scale, and take the value before (the one
    behind where they shrink); the converter leaves the attributes out, and then half pixels count.
    """
    import onnx

    if not own <= 10 < goal:
        return
    values = {tensor.name: tensor for tensor in converted.graph.initializer}
    for node in _nodes(converted.graph):
        if node.op_type == "Constant":
            found = [item.t for item in node.attribute if item.name == "value"]
            values |= dict(zip(node.output, found, strict=False))
    for node in _nodes(converted.graph):
        named = {attribute.name for attribute in node.attribute}
        if node.op_type != "Resize" or "coordinate_transformation_mode" in named:
            continue
        scales = values.get(node.input[2])
        factors = [] if scales is None else onnx.numpy_helper.to_array(scales).tolist()
        nearest = "ceil" if any(factor < 1 for factor in factors) else "floor"
        for name, value in (
            ("coordinate_transformation_mode", "asymmetric"),
            ("nearest_mode", nearest),
        ):
            node.attribute.append(onnx.helper.make_attribute(name, value))


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
