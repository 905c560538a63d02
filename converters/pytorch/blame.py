"""Which operator the exporter has no ONNX form for, and which layer of the model made it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from deploykit._plugins.converters.pytorch.program import first_line
from deploykit._plugins.converters.pytorch.script_graph import nodes, where

from deploykit.errors import UnsupportedError

ADVICE = {
    "nms": "end the model before non-maximum suppression, and run that outside of it",
    "roi": "end the model before this operator, and run it outside of the model",
    "fft": "write the transform as a product with a matrix of cosines and sines",
    "quantized": "convert the module as it was before it was quantised, and quantise the ONNX model",
}


def no_onnx_form(error: BaseException, model: Any) -> UnsupportedError:
    """Return the error that says why `model` (an ExportedProgram or a script) cannot be exported.

    It names the operators without ONNX form, and for each the layers that use it.
    """
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(texts)
    found = re.findall(r"OpOverload\(op='([\w.:]+)'", text)
    found += re.findall(r"operator '?((?:aten|prim|quantized|\w+)::\w+)'?", text)
    names = tuple(
        dict.fromkeys(name.replace(".", "::", 1) if "::" not in name else name for name in found)
    )
    if not names:
        if (node := re.search(r"translating node %(\w+)", text)) is not None:
            place = _layer_of_node(model, node[1])
            at = f" in `{place}`" if place else ""
            reason = first_line(error.__cause__ or error)
            return UnsupportedError(
                f"PyTorch's ONNX exporter cannot translate the node `{node[1]}`{at}: {reason}",
                hint="write this layer with other operators, or leave it out of the model",
            )
        return UnsupportedError(
            f"PyTorch's ONNX exporter cannot take the model: {first_line(error)}"
        )
    shown = []
    for name in names:
        places = list(dict.fromkeys(_layers(model, name)))
        if not places and hasattr(model, "run_decompositions"):
            # the exporter takes operators apart before it looks them up
            places = list(dict.fromkeys(_layers(model.run_decompositions(), name)))
        places = places or list(dict.fromkeys(_layers(model, name, ending=True)))
        at = f" (in {', '.join(f'`{place}`' for place in places[:3])})" if places else ""
        shown.append(f"{name}{at}")
    advice = next((text for part, text in ADVICE.items() if part in " ".join(names)), "")
    return UnsupportedError(
        f"PyTorch's ONNX exporter has no ONNX form for {', '.join(shown)}",
        operators=names,
        hint=advice or "write this layer with other operators, or leave it out of the model",
    )


def _layers(model: Any, name: str, *, ending: bool = False) -> Iterator[str]:
    """Yield the layers of the model that use the operator `name` (`aten::lu`, `aten::lu.default`).

    `ending` takes operators whose name ends so: `special_bessel_j1` is taken apart to `bessel_j1`.
    """
    plain = name.replace("::", ".").split(".")[:2]

    def fits(found: str) -> bool:
        namespace, _, own = found.partition("::")
        return own.endswith(plain[-1]) if ending else [namespace, own] == plain

    if hasattr(model, "graph_module"):
        for node in model.graph.nodes:
            target = getattr(node.target, "_schema", None)
            if target is not None and fits(target.name) and (place := _stack(node)):
                yield place
    elif hasattr(model, "inlined_graph"):
        for node in nodes(model.inlined_graph):
            if fits(node.kind()) and (place := where(node)):
                yield place


def _layer_of_node(model: Any, name: str) -> str:
    if not hasattr(model, "graph_module"):
        return ""
    return next((_stack(node) for node in model.graph.nodes if node.name == name), "")


def _stack(node: Any) -> str:
    """Return the path and class of the innermost module that a node of torch.export comes from."""
    entries = list((node.meta.get("nn_module_stack") or {}).values())
    if not entries:
        return ""
    path, kind = entries[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return f"{path or 'forward'} ({kind.rpartition('.')[2]})"
