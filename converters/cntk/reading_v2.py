"""A CNTK v2 function as a graph: blocks opened, placeholders replaced.

Format: `CompositeFunction::Serialize`, `PrimitiveFunction::Serialize` and `Variable::Serialize` of
CNTK 2.7, and what older versions wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk import dictionary
from deploykit._plugins.converters.cntk.graph import Axis, Graph, Leaf, Node, Root

from deploykit.errors import SourceError, UnsupportedError
from deploykit.formats.content import damaged

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# in the order of PrimitiveOpType, whose numbers the files hold
_IN_ORDER = (
    "Negate Sigmoid Tanh ReLU Exp Log Sqrt Floor Abs Reciprocal Softmax Hardmax TransposeAxes Where "
    "Slice Dropout Reshape Pooling SumAll Plus Minus ElementTimes Equal NotEqual Less LessEqual "
    "Greater GreaterEqual PackedIndex GatherPacked ScatterPacked Times TransposeTimes Convolution "
    "SquaredError CrossEntropyWithSoftmax ClassificationError PastValue FutureValue ReduceElements "
    "BatchNormalization Clip Select Splice Combine RandomSample RandomSampleInclusionFrequency "
    "ROIPooling Logistic OptimizedRNNStack ReconcileDynamicAxis LogSoftmax LogPlus CosDistance Sin "
    "Cos Pass Block Unpooling LambdaRank NDCG EditDistanceError NoOp LabelsToGraph StopGradient ELU "
    "ForwardBackward CosDistanceWithNegativeSamples OneHot Pow ToSequence ToSequenceLike "
    "UnpackSequence Assign Gather StableSigmoid RandomDistribution Sinh Cosh UnpackBatch ToBatch "
    "Asin Acos Pad Crop Atanh Asinh TopK Squeeze ConstantOp LatticeSequenceWithSoftmax Cast "
    "EyeLikeOp CustomProxyOp StraightThrough Tan Atan ConvolutionSequenceShape"
)
OPERATORS = tuple(_IN_ORDER.split())

INPUT, _OUTPUT, PARAMETER, CONSTANT, PLACEHOLDER = range(5)
DTYPES = {0: "float32", 1: "float32", 2: "float64", 4: "float16", 5: "int8", 6: "int16"}
TWO_OUTPUTS = {"UnpackSequence", "TopK"}


def read(path: Path) -> Graph:
    """Read a CNTK v2 model.

    Raises SourceError where it is damaged or holds no function, UnsupportedError where it holds a
    function that only its author's code can compute.
    """
    whole = dictionary.read(path)
    composite = _composite(whole, path)
    try:
        return _Reader(composite).graph()
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise damaged(path, "CNTK v2 model", f"{type(error).__name__}: {error}") from error


def _composite(whole: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    if "primitive_functions" in whole and "inputs" in whole:
        return whole
    for value in whole.values():  # a checkpoint that keeps the model beside the learners' state
        if isinstance(value, dict) and "primitive_functions" in value and "inputs" in value:
            return value
    raise SourceError(
        f"`{path}` holds no CNTK function, but {', '.join(sorted(whole)[:5]) or 'nothing'}",
        hint="a `.ckp` file is the state of a training: name the model that lies beside it",
    )


class _Reader:
    def __init__(self, composite: Mapping[str, Any]) -> None:
        self.composite = composite
        self.variables: dict[str, Mapping[str, Any]] = {
            _text(one["uid"]): one for one in composite["inputs"]
        }
        self.functions: dict[str, Mapping[str, Any]] = {
            _text(one["uid"]): one for one in composite["primitive_functions"]
        }
        # what stands for what: a block's argument, a block's output
        self.stands_for: dict[str, str] = {}

    def graph(self) -> Graph:
        for function in self.functions.values():
            if function.get("type") != "PrimitiveFunction" or "op" not in function:
                kind = function.get("user_function_name") or function.get("type", "?")
                raise UnsupportedError(
                    f"`{function.get('name') or function['uid']}` is a user-defined function: {kind}",
                    operators=(str(kind),),
                    hint="its code is not in the file: build the model from CNTK's own operators",
                )
            if self.kind(function) == "Block":
                self.open(function)
        nodes = tuple(
            self.node(one)
            for one in self.functions.values()
            if self.kind(one) not in ("Block", "Combine")
        )
        made = {uid for node in nodes for uid in node.outputs}
        leaves = {
            uid: self.leaf(one)
            for uid, one in self.variables.items()
            if uid not in made and uid not in self.stands_for
        }
        for node in nodes:
            for uid in node.inputs:
                if uid not in made and uid not in leaves:
                    raise ValueError(f"nothing makes `{uid}`, which `{node.uid}` takes")
        return Graph(
            leaves=leaves,
            nodes=nodes,
            roots=self.roots(),
            names=self.names(),
            version=int(self.composite.get("version", 0)),
        )

    def kind(self, function: Mapping[str, Any]) -> str:
        number = function["op"]
        if not isinstance(number, int):
            raise TypeError(f"the operator of `{function['uid']}` is no number")
        if not 0 <= number < len(OPERATORS):
            raise UnsupportedError(
                f"`{function['uid']}` has operator number {number}, which CNTK 2.7 does not know",
                operators=(str(number),),
                hint="save the model with the public CNTK 2.7 or older",
            )
        return OPERATORS[number]

    def open(self, block: Mapping[str, Any]) -> None:
        """Let the arguments and outputs of a block stand for what they are."""
        keys = block["block_function_composite_arguments_map_keys"]
        values = block["block_function_composite_arguments_map_values"]
        for key, value in zip(keys, values, strict=True):
            self.stands_for[_text(key)] = _text(value)
        root = self.functions[_text(block["block_function_composite"]["root"])]
        for number, uid in enumerate(self.outputs(root)):
            self.stands_for[f"{block['uid']}_Output_{number}"] = uid

    def outputs(self, function: Mapping[str, Any]) -> tuple[str, ...]:
        kind = self.kind(function)
        if kind == "Combine":
            return tuple(_text(one) for one in function["inputs"])
        if kind == "Block":
            root = self.functions[_text(function["block_function_composite"]["root"])]
            if root is function:
                raise ValueError(f"block `{function['uid']}` holds itself")
            count = len(self.outputs(root))
        else:
            count = 2 if kind in TWO_OUTPUTS else 1
        return tuple(f"{function['uid']}_Output_{number}" for number in range(count))

    def resolved(self, uid: str) -> str:
        seen = set()
        while uid in self.stands_for:
            if uid in seen:
                raise ValueError(f"`{uid}` stands for itself")
            seen.add(uid)
            uid = self.stands_for[uid]
        return uid

    def node(self, function: Mapping[str, Any]) -> Node:
        uid = _text(function["uid"])
        outputs = self.outputs(function)
        # the placeholder that breaks a cycle in the file has the shape
        around = outputs[0]
        if self.kind(function) in ("PastValue", "FutureValue"):
            around = _text(function["inputs"][0])
        declared = self.variables.get(around)
        shape = declared.get("shape") if declared is not None else None
        known = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
        attributes = function["attributes"]
        if not isinstance(attributes, dict):
            raise TypeError(f"the attributes of `{uid}` are no dictionary")
        return Node(
            uid=uid,
            name=_text(function.get("name") or ""),
            op=self.kind(function),
            inputs=tuple(self.resolved(_text(one)) for one in function["inputs"]),
            outputs=outputs,
            attributes=attributes,
            shape=shape if known else None,
        )

    def leaf(self, variable: Mapping[str, Any]) -> Leaf:
        import numpy as np

        uid = _text(variable["uid"])
        kind = variable["kind"]
        if kind not in range(5):
            raise TypeError(f"`{uid}` is of the unknown kind {kind!r}")
        shape = variable.get("shape", ())
        if not isinstance(shape, tuple) or not all(isinstance(size, int) for size in shape):
            raise TypeError(f"the shape of `{uid}` is {shape!r}")
        values = None
        if kind in (PARAMETER, CONSTANT):
            values = variable["value"]
            if not isinstance(values, np.ndarray):
                raise TypeError(f"`{uid}` has no values")
            shape = values.shape[::-1]
        axes = [axis for axis in variable.get("dynamic_axis", ()) if isinstance(axis, Axis)]
        named = [axis.name for axis in axes if axis.index is None and axis.name != "batch"]
        if len(named) > 1:
            raise UnsupportedError(
                f"`{uid}` has several sequence axes: {', '.join(named)}",
                operators=("Input(sequence of sequences)",),
                hint="only one sequence axis beside the batch can be converted",
            )
        is_input = values is None
        unknown = is_input and any(axis.index is not None for axis in axes)
        return Leaf(
            uid=uid,
            name=_text(variable.get("name") or ""),
            shape=shape,
            dtype=values.dtype.name if values is not None else DTYPES[variable["data_type"]],
            values=values,
            batch=is_input and (bool(axes) or unknown),
            sequence=(named or [""])[0] if is_input and not unknown else "",
            sparse=bool(variable.get("is_sparse", False)),
        )

    def roots(self) -> tuple[Root, ...]:
        root = self.functions[_text(self.composite["root"])]
        return tuple(
            Root(name=self.shown(uid), uid=self.resolved(uid)) for uid in self.outputs(root)
        )

    def shown(self, uid: str) -> str:
        """Return the name that CNTK gives an output: its function's, or its own uid."""
        owner = self.functions.get(uid.rpartition("_Output_")[0])
        if owner is not None:
            return _text(owner.get("name") or "") or uid
        variable = self.variables.get(uid)
        return _text((variable or {}).get("name") or "") or uid

    def names(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for function in self.functions.values():
            for number, uid in enumerate(self.outputs(function)):
                for name in (uid, function["uid"], function.get("name"))[: 3 if not number else 1]:
                    if name:
                        found.setdefault(_text(name), self.resolved(uid))
        return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where a name belongs")
    return value
