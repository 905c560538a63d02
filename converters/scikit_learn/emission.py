"""To ONNX: skl2onnx walks the pipeline, and asks us for the ensembles of trees in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.scikit_learn import boosters
from deploykit._plugins.converters.scikit_learn.ensembles import Ensemble, ensemble_of

from deploykit.errors import PluginError, UnsupportedError

if TYPE_CHECKING:
    import onnx
    from deploykit._plugins.converters.scikit_learn.loading import Loaded

DEFAULT_OPSET = 18
OPTIONS: dict[str, Any] = {
    "zipmap": [True, False, "columns"],
    "nocl": [True, False],
    "output_class_labels": [False, True],
    "raw_scores": [True, False],
}


def to_onnx(loaded: Loaded, opset: int | None) -> onnx.ModelProto:
    """Return the ONNX model with our names. Raises UnsupportedError where a step has no ONNX form."""
    import skl2onnx
    from skl2onnx.common import exceptions
    from sklearn.base import is_classifier

    _register()
    model = loaded.model
    try:
        precise = _trees_after_steps(loaded)
        types = [(spec.name, _type(spec, precise=precise)) for spec in loaded.signature.inputs]
        opsets = {"": opset or DEFAULT_OPSET, "ai.onnx.ml": 3}
        options = {id(model): {"zipmap": False}} if is_classifier(model) else None
        try:
            made = skl2onnx.to_onnx(
                model, initial_types=types, options=options, target_opset=opsets
            )
        except NameError:
            # some classifiers do not know the option, and make dictionaries all the same
            plain = {id(last_step(model)): {"nocl": False}}
            made = skl2onnx.to_onnx(model, initial_types=types, options=plain, target_opset=opsets)
    except (exceptions.MissingShapeCalculator, exceptions.MissingConverter) as error:
        raise UnsupportedError(
            f"skl2onnx {skl2onnx.__version__} cannot convert a step: {_first(error)}",
            hint="replace the step, or convert the model after it and do that step yourself",
        ) from error
    except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UnsupportedError(
            f"skl2onnx {skl2onnx.__version__} cannot convert the model: "
            f"{type(error).__name__}: {_first(error)}"
        ) from error
    made = _named(_without_dictionaries(made), loaded)
    return _with_float_inputs(made) if precise else made


def _trees_after_steps(loaded: Loaded) -> bool:
    """Whether trees follow other steps on floats.

    Then these run in double precision, as in scikit-learn: else a value on a threshold, as values of
    the training data often are, may fall on its other side.
    """
    last = last_step(loaded.model)
    specs = loaded.signature.inputs
    return (
        last is not loaded.model
        and all(spec.dtype == "float32" for spec in specs)
        and ensemble_of(last) is not None
    )


def _with_float_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the double inputs of the graph be float32, cast inside."""
    import onnx

    names = {value.name: f"{value.name}_double" for value in model.graph.input}
    _rename(model, names)
    for value in model.graph.input:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
            # what comes out is ours, and float32
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    casts = [
        onnx.helper.make_node("Cast", [name], [inner], to=onnx.TensorProto.DOUBLE)
        for name, inner in names.items()
    ]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def last_step(model: Any) -> Any:
    """Return the last step of a pipeline, of one in it too, or the model itself."""
    steps = getattr(model, "steps", None)
    return last_step(steps[-1][1]) if steps else model


def _without_dictionaries(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give out the tensor of scores that a ZipMap would turn into one dictionary a row."""
    import onnx

    maps = {node.output[0]: node for node in model.graph.node if node.op_type == "ZipMap"}
    for value in model.graph.output:
        if value.name in maps:
            scores = maps[value.name].input[0]
            model.graph.node.remove(maps[value.name])
            value.CopyFrom(onnx.helper.make_tensor_value_info(scores, 1, [None, None]))
    return model


def _first(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _named(model: onnx.ModelProto, loaded: Loaded) -> onnx.ModelProto:
    """Give inputs and outputs the names and axes of the signature."""
    wanted = loaded.signature.outputs
    if len(model.graph.output) != len(wanted):
        found = [value.name for value in model.graph.output]
        raise PluginError(f"skl2onnx gave the outputs {found}, expected {[w.name for w in wanted]}")
    renamed = {
        value.name: spec.name for value, spec in zip(model.graph.output, wanted, strict=True)
    }
    inner = {
        name
        for node in model.graph.node
        for name in (*node.input, *node.output)
        if name not in renamed
    } | {value.name for value in model.graph.input}
    clash = [name for name in renamed.values() if name in inner]
    for name in clash:
        _rename(model, {name: f"{name}_inner"})
    _rename(model, renamed)
    if wanted[-1].name == "scores" and (wanted[-1].shape or (None,))[-1] == 1:
        _last_column(model, "scores")
    batch = loaded.signature.inputs[0].shape[0]
    for value in [*model.graph.input, *model.graph.output]:
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        if isinstance(batch, int):
            axis.dim_value = batch
        else:
            axis.dim_param = str(batch)
    del model.graph.value_info[:]
    return model


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in model.graph.output:
        value.name = names.get(value.name, value.name)


def _last_column(model: onnx.ModelProto, name: str) -> None:
    """Keep of the output `name` what the library gives: skl2onnx also writes `[-score, score]`."""
    import numpy as np
    from onnx import helper, numpy_helper

    _rename(model, {name: f"{name}_columns"})
    model.graph.initializer.append(
        numpy_helper.from_array(np.array([-1], np.int64), f"{name}_last")
    )
    model.graph.node.append(
        helper.make_node("Gather", [f"{name}_columns", f"{name}_last"], [name], axis=1)
    )
    at = next(at for at, value in enumerate(model.graph.output) if value.name == f"{name}_columns")
    model.graph.output[at].CopyFrom(helper.make_tensor_value_info(name, 1, [None, 1]))


def _type(spec: Any, *, precise: bool) -> Any:
    from skl2onnx.common import data_types

    kinds = {
        "float32": data_types.FloatTensorType,
        "float64": data_types.DoubleTensorType,
        "int64": data_types.Int64TensorType,
        "string": data_types.StringTensorType,
        "bool": data_types.BooleanTensorType,
    }
    batch, width = spec.shape
    if precise:
        return data_types.DoubleTensorType([batch if isinstance(batch, int) else None, width])
    return kinds[spec.dtype]([batch if isinstance(batch, int) else None, width])


# ---- ensembles

_registered: list[bool] = []


def _register() -> None:
    """Tell skl2onnx once that ensembles of trees are ours."""
    if _registered:
        return
    _registered.append(True)
    import lightgbm
    import xgboost
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
    from sklearn import ensemble, tree

    own = boosters.estimators()
    regressors = (
        tree.DecisionTreeRegressor,
        tree.ExtraTreeRegressor,
        ensemble.RandomForestRegressor,
        ensemble.ExtraTreesRegressor,
        ensemble.HistGradientBoostingRegressor,
        xgboost.XGBRegressor,
        xgboost.XGBRFRegressor,
        xgboost.XGBRanker,
        lightgbm.LGBMRegressor,
        lightgbm.LGBMRanker,
        *(pair[0] for pair in own.values()),
    )
    classifiers = (
        tree.DecisionTreeClassifier,
        tree.ExtraTreeClassifier,
        ensemble.RandomForestClassifier,
        ensemble.ExtraTreesClassifier,
        ensemble.HistGradientBoostingClassifier,
        xgboost.XGBClassifier,
        xgboost.XGBRFClassifier,
        lightgbm.LGBMClassifier,
        *(pair[1] for pair in own.values()),
    )
    for kind in regressors:
        update_registered_converter(
            kind,
            f"Deploykit{kind.__name__}",
            _regressor_shapes,
            _convert,
            overwrite=True,
        )
    for kind in classifiers:
        update_registered_converter(
            kind,
            f"Deploykit{kind.__name__}",
            calculate_linear_classifier_output_shapes,
            _convert,
            overwrite=True,
            options=OPTIONS,
        )


def _regressor_shapes(operator: Any) -> None:
    """Tell skl2onnx how many values a regressor gives for each row."""
    from skl2onnx.common.shape_calculator import calculate_linear_regressor_output_shapes

    calculate_linear_regressor_output_shapes(operator)
    trees = ensemble_of(operator.raw_operator)
    if trees is not None and trees.outputs > 1:
        operator.outputs[0].type.shape = [operator.outputs[0].type.shape[0], trees.outputs]


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """Write one ensemble, as skl2onnx calls it."""
    trees = ensemble_of(operator.raw_operator)
    if trees is None:
        raise UnsupportedError(
            f"`{type(operator.raw_operator).__name__}` with several outputs has no ONNX form here"
        )
    emit = _Emission(scope, container)
    (data,) = operator.inputs
    inputs = emit.node("Cast", [data.full_name], to=1)
    margin = emit.margin(trees, inputs)
    outputs = [value.full_name for value in operator.outputs]
    value = emit.linked(trees, margin)
    if trees.classes is None:
        emit.node("Identity", [value], outputs[0])
        return
    if trees.outputs == 1 and len(trees.classes) == 2:
        rest = emit.node("Sub", [emit.floats([1.0]), value])
        value = emit.node("Concat", [rest, value], axis=1)
    emit.node("Identity", [value], outputs[1])
    place = emit.node("ArgMax", [value], axis=1, keepdims=0)
    emit.node("Gather", [emit.labels(trees.classes), place], outputs[0], axis=0)


class _Emission:
    """Nodes into skl2onnx's container, under names of their own."""

    def __init__(self, scope: Any, container: Any) -> None:
        self.scope = scope
        self.container = container

    def node(
        self, kind: str, inputs: list[str], output: str = "", *, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node and return the name of its output."""
        output = output or str(self.scope.get_unique_variable_name(kind.lower()))
        version = 3 if domain else int(self.container.target_opset)
        self.container.add_node(
            kind,
            inputs,
            [output],
            op_domain=domain,
            op_version=version,
            name=self.scope.get_unique_operator_name(kind),
            **attributes,
        )
        return output

    def floats(self, values: list[float]) -> str:
        """Add a float32 constant of one axis."""
        name = str(self.scope.get_unique_variable_name("constant"))
        self.container.add_initializer(name, 1, [len(values)], values)
        return name

    def labels(self, classes: Any) -> str:
        """Add the labels of a classifier: texts or int64."""
        name = str(self.scope.get_unique_variable_name("classes"))
        if classes.dtype.kind in "OUS":
            texts = [str(one).encode() for one in classes.tolist()]
            self.container.add_initializer(name, 8, [len(texts)], texts)
        else:
            numbers = [int(one) for one in classes.tolist()]
            self.container.add_initializer(name, 7, [len(numbers)], numbers)
        return name

    def margin(self, trees: Ensemble, inputs: str) -> str:
        """Return the sum of the leaves and the base, `[batch, outputs]`."""
        columns: dict[str, list[Any]] = {
            key: []
            for key in (
                *("nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values"),
                *("nodes_modes", "nodes_truenodeids", "nodes_falsenodeids"),
                "nodes_missing_value_tracks_true",
                *("target_treeids", "target_nodeids", "target_ids", "target_weights"),
            )
        }
        for number, tree in enumerate(trees.trees):
            for at, node in enumerate(tree):
                mode = "LEAF" if node.is_leaf else "BRANCH_LT" if node.strict else "BRANCH_LEQ"
                row = (
                    *(number, at, node.feature, 0.0 if node.is_leaf else node.split()),
                    *(mode, max(node.left, 0), max(node.right, 0), int(node.missing_left)),
                )
                for key, value in zip(list(columns)[:8], row, strict=True):
                    columns[key].append(value)
                for target, amount in zip(node.targets, node.values, strict=True):
                    for key, value in zip(
                        list(columns)[8:], (number, at, target, amount), strict=True
                    ):
                        columns[key].append(value)
        found = self.node(
            "TreeEnsembleRegressor",
            [inputs],
            domain="ai.onnx.ml",
            n_targets=trees.outputs,
            aggregate_function="SUM",
            post_transform="NONE",
            **dict[str, Any](columns),
        )
        return (
            self.node("Add", [found, self.floats(list(trees.base))]) if any(trees.base) else found
        )

    def linked(self, trees: Ensemble, margin: str) -> str:
        """Return the link function of the sum."""
        if trees.scale != 1.0 and trees.link == "sigmoid":
            margin = self.node("Mul", [margin, self.floats([trees.scale])])
        if trees.link == "identity":
            return margin
        if trees.link == "softmax":
            return self.node("Softmax", [margin], axis=1)
        if trees.link == "square":
            return self.node("Mul", [margin, self.node("Abs", [margin])])
        if trees.link == "step":
            return self.node("Cast", [self.node("Greater", [margin, self.floats([0.0])])], to=1)
        simple = {"sigmoid": "Sigmoid", "exp": "Exp", "softplus": "Softplus"}
        return self.node(simple[trees.link], [margin])
