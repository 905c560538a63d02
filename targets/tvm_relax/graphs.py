"""From ONNX to TVM's graph: folded first, checked for what the importer lacks, then imported."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.tvm_relax import converters

from deploykit.errors import UnsupportedError
from deploykit.onnx_folding import fold
from deploykit.onnx_graph import every_node, read_whole, set_inputs
from deploykit.protocol import TensorSpec

if TYPE_CHECKING:
    import onnx

# The importer reads older forms of some operators wrongly or not at all (a Slice with attributes);
# from 18 on, reductions change once more.
OPSET = 17


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the importer's prints and warnings out of the way: what matters becomes an error."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep what native code writes to stderr out of the way: TVM lists scopes as warnings."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def folded(path: str, inputs: tuple[TensorSpec, ...]) -> onnx.ModelProto:
    """Return the model with constants folded and the inputs' sizes fixed as far as known.

    ONNX Runtime does it, at the level that stays within ONNX's own operators. Raises SourceError
    where the file is no model, UnsupportedError where ONNX Runtime cannot take it.
    """
    import onnx

    model = read_whole(path)
    check_operators(model, foreign_only=True)
    set_inputs(model, inputs)
    with tempfile.TemporaryDirectory(prefix="deploykit-tvm-") as folder:
        return onnx.load(fold(_upgraded(model), Path(folder), target="tvm"))


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in the operator set that the importer reads best, where onnx can do that."""
    from onnx import version_converter

    opset = next((each for each in model.opset_import if each.domain in ("", "ai.onnx")), None)
    if opset is None or opset.version >= OPSET:
        return model
    # before version 4 of the format constants had to be inputs too; some exporters left them out
    model.ir_version = max(model.ir_version, 4)
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, version_converter.ConvertError):
        # no rule from here to there; the importer then says itself what it cannot read
        return model


def check_operators(model: onnx.ModelProto, *, foreign_only: bool = False) -> None:
    """Raise UnsupportedError naming all operators that the importer lacks.

    The importer looks at names only: an operator of another domain would be read as ONNX's own.
    """
    from tvm.relax.frontend.onnx import onnx_frontend

    known = set(onnx_frontend._get_convert_map()) | {"If", "Constant"}
    missing = set()
    for node in every_node(model.graph):
        if node.domain not in ("", "ai.onnx", "com.microsoft"):
            missing.add(f"{node.domain}.{node.op_type}")
        elif not foreign_only and node.op_type not in known:
            missing.add(node.op_type)
    if missing:
        operators = tuple(sorted(missing))
        raise UnsupportedError(
            f"target tvm cannot take operators {', '.join(operators)}", operators=operators
        )


def imported(model: onnx.ModelProto) -> Any:
    """Return the model as TVM's module; sizes that are not fixed stay symbols.

    Raises UnsupportedError naming the operator that the importer stumbled over.
    """
    from tvm.relax.frontend.onnx import from_onnx

    try:
        with converters.ours():
            return from_onnx(model, keep_params_in_input=False)
    except Exception as error:
        # anything from AttributeError to TVM's own errors: what counts is the operator
        operator = _operator_of(error)
        if operator is None:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(
            f"target tvm cannot import operator {operator} as this model uses it: {lines[-1]}",
            hint="fixed input shapes (--shape) often help",
            operators=(operator,),
        ) from error


def in_float16(module: Any) -> Any:
    """Return the module with its convolutions and matrix products in float16.

    Raises UnsupportedError where TVM cannot convert it, or where nothing would change.
    """
    from tvm import relax
    from tvm.error import InternalError

    try:
        made = relax.transform.ToMixedPrecision(out_dtype="float32")(module)
    except InternalError as error:
        # it stops at operators that the importer writes out as kernels, such as Clip
        raise UnsupportedError(
            f"target tvm cannot convert this graph to float16: {str(error).splitlines()[0]}",
            hint="use --precision fp32",
        ) from error
    if "float16" not in made["main"].script():
        raise UnsupportedError(
            "target tvm finds no operator to compute in float16: fp16 would take no effect",
            hint="use --precision fp32",
        )
    return made


def _operator_of(error: BaseException) -> str | None:
    """Return the operator that was being imported, from the importer's own frames."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ("_construct_nodes", "_convert_subgraph"):
            found = frame.f_locals.get("op_name", found)
    return found


def outputs(model: onnx.ModelProto, asked: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return the outputs with the sizes that ONNX Runtime worked out while folding."""
    found = {value.name: value.type.tensor_type for value in model.graph.output}
    made = []
    for spec in asked:
        kind = found[spec.name]
        shape = spec.shape
        if kind.HasField("shape"):
            shape = tuple(
                size.dim_value if size.HasField("dim_value") else (size.dim_param or None)
                for size in kind.shape.dim
            )
        made.append(TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape))
    return tuple(made)


def dynamic_axes(inputs: tuple[TensorSpec, ...]) -> list[str]:
    """Return the axes without a size, each as `input:axis`."""
    return [
        f"{spec.name}:{axis}"
        for spec in inputs
        for axis, size in enumerate(spec.shape or ())
        if not isinstance(size, int)
    ]


def with_batch_of_one(inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...] | None:
    """Return `inputs` with every first axis fixed to 1, or None where others are dynamic too."""
    if any(not isinstance(size, int) for spec in inputs for size in (spec.shape or ())[1:]):
        return None
    return tuple(
        TensorSpec(
            name=spec.name,
            dtype=spec.dtype,
            shape=spec.shape
            and ((spec.shape[0] if isinstance(spec.shape[0], int) else 1), *spec.shape[1:]),
        )
        for spec in inputs
    )


def try_run(library: Any, model: onnx.ModelProto, inputs: tuple[TensorSpec, ...]) -> None:
    """Run once on zeros, two along each dynamic axis: some models compile and then cannot run."""
    import numpy as np
    import tvm
    from tvm import relax

    specs = {spec.name: spec for spec in inputs}
    arguments = []
    for value in model.graph.input:
        spec = specs[value.name]
        sizes = [size if isinstance(size, int) else 2 for size in spec.shape or ()]
        arguments.append(tvm.runtime.tensor(np.zeros(sizes, spec.dtype)))
    relax.VirtualMachine(library, tvm.cpu())["main"](*arguments)
