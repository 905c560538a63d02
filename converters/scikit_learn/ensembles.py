"""Ensembles of decision trees, read from the models of several libraries into one form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A split (`x[feature] <= threshold`, or `<` where `strict`, goes left), or a leaf with values.

    A missing value (NaN) goes left where `missing_left`. `left` and `right` are places in the tree;
    a leaf has `values`, which are added to the outputs `targets`.
    """

    feature: int = 0
    threshold: float = 0.0
    strict: bool = False
    missing_left: bool = False
    left: int = -1
    right: int = -1
    targets: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    @property
    def is_leaf(self) -> bool:
        return self.left < 0

    def split(self) -> float:
        """Return the float32 threshold that splits float32 values exactly as this one does."""
        import numpy as np

        with np.errstate(over="ignore"):
            near = np.float32(self.threshold)
        if self.strict and float(near) < self.threshold:
            near = np.nextafter(near, np.float32(np.inf))
        if not self.strict and float(near) > self.threshold:
            near = np.nextafter(near, np.float32(-np.inf))
        return float(near)


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Trees whose leaves are summed over `outputs` values, plus `base`; then comes the link.

    `link`: `identity`, `sigmoid` (also of each class apart), `softmax`, `exp`, `softplus`, `square`
    (keeping the sign), `step` (1 above 0). `scale` multiplies the sum before a sigmoid. `classes` are
    the labels of a classifier, None of a regressor.
    """

    trees: tuple[tuple[Node, ...], ...]
    features: int
    outputs: int
    base: tuple[float, ...]
    link: str = "identity"
    scale: float = 1.0
    classes: Array | None = None

    def thresholds(self) -> dict[int, Array]:
        """Return the float32 thresholds of each feature that is split on, sorted."""
        import numpy as np

        found: dict[int, set[float]] = {}
        for tree in self.trees:
            for node in tree:
                if not node.is_leaf and math.isfinite(node.split()):
                    found.setdefault(node.feature, set()).add(node.split())
        return {feature: np.array(sorted(values), np.float32) for feature, values in found.items()}

    def sums(self, row: Array) -> Array:
        """Return what the trees add up to for one row, in float64, without `base`."""
        import numpy as np

        total = np.zeros(self.outputs)
        for tree in self.trees:
            node = tree[0]
            while not node.is_leaf:
                value = float(row[node.feature])
                if math.isnan(value):
                    goes_left = node.missing_left
                else:
                    goes_left = value < node.threshold if node.strict else value <= node.threshold
                node = tree[node.left if goes_left else node.right]
            for target, amount in zip(node.targets, node.values, strict=True):
                total[target] += amount
        return total


def ensemble_of(model: Any) -> Ensemble | None:
    """Return the trees of `model`, None where it is no ensemble that is written by ourselves.

    Raises UnsupportedError for what trees in ONNX cannot say: categorical splits, linear leaves, …
    """
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if kinds & {"XGBModel", "BoosterOfXGBoost"}:
        return _xgboost(model)
    if kinds & {"LGBMModel", "BoosterOfLightGBM"}:
        return _lightgbm(model)
    if "BaseHistGradientBoosting" in kinds:
        return _histogram(model)
    if kinds & {"BaseDecisionTree", "ForestClassifier", "ForestRegressor"}:
        return _forest(model)
    return None


def _refused(what: str, hint: str = "") -> UnsupportedError:
    return UnsupportedError(f"{what}: no ONNX form", hint=hint)


# ---- scikit-learn


def _forest(model: Any) -> Ensemble | None:
    import numpy as np

    members = list(getattr(model, "estimators_", [model]))
    classes = getattr(model, "classes_", None)
    if model.n_outputs_ != 1 and classes is not None:
        return None
    outputs = len(classes) if classes is not None else int(model.n_outputs_)
    trees = []
    for member in members:
        tree = member.tree_
        values = np.asarray(tree.value, np.float64)[:, :, : outputs if classes is not None else 1]
        values = values.reshape(len(values), outputs)
        if classes is not None:
            values = values / values.sum(axis=1, keepdims=True)
        missing = np.asarray(getattr(tree, "missing_go_to_left", np.zeros(tree.node_count)))
        trees.append(
            tuple(
                Node(targets=tuple(range(outputs)), values=tuple(values[at] / len(members)))
                if tree.children_left[at] < 0
                else Node(
                    feature=int(tree.feature[at]),
                    threshold=float(tree.threshold[at]),
                    missing_left=bool(missing[at]),
                    left=int(tree.children_left[at]),
                    right=int(tree.children_right[at]),
                )
                for at in range(tree.node_count)
            )
        )
    return Ensemble(
        trees=tuple(trees),
        features=int(model.n_features_in_),
        outputs=outputs,
        base=(0.0,) * outputs,
        classes=classes,
    )


def _histogram(model: Any) -> Ensemble:
    import numpy as np

    if getattr(model, "_preprocessor", None) is not None:
        raise _refused("histogram gradient boosting with categorical features")
    classes = getattr(model, "classes_", None)
    trees = []
    for iteration in model._predictors:
        for target, predictor in enumerate(iteration):
            nodes = predictor.nodes
            if nodes["is_categorical"].any():
                raise _refused("histogram gradient boosting with categorical features")
            trees.append(
                tuple(
                    Node(targets=(target,), values=(float(node["value"]),))
                    if node["is_leaf"]
                    else Node(
                        feature=int(node["feature_idx"]),
                        threshold=float(node["num_threshold"]),
                        missing_left=bool(node["missing_go_to_left"]),
                        left=int(node["left"]),
                        right=int(node["right"]),
                    )
                    for node in nodes
                )
            )
    base = np.asarray(model._baseline_prediction, np.float64).ravel()
    link = "identity"
    if classes is not None:
        link = "sigmoid" if len(base) == 1 else "softmax"
    elif model.loss in ("poisson", "gamma"):
        link = "exp"
    return Ensemble(
        trees=tuple(trees),
        features=int(model.n_features_in_),
        outputs=len(base),
        base=tuple(base.tolist()),
        link=link,
        classes=classes,
    )


# ---- XGBoost

_XGBOOST_LINKS = {
    "binary:logistic": "sigmoid",
    "multi:softprob": "softmax",
    "multi:softmax": "softmax",
    "reg:logistic": "sigmoid",
    "binary:hinge": "step",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
    "survival:cox": "exp",
    "survival:aft": "exp",
    "binary:logitraw": "identity",
    "reg:squarederror": "identity",
    "reg:linear": "identity",
    "reg:squaredlogerror": "identity",
    "reg:pseudohubererror": "identity",
    "reg:absoluteerror": "identity",
    "reg:quantileerror": "identity",
    "rank:ndcg": "identity",
    "rank:map": "identity",
    "rank:pairwise": "identity",
}
XGBOOST_CLASSIFIERS = ("binary:logistic", "multi:softprob", "multi:softmax")


def xgboost_objective(booster: Any) -> str:
    """Return the name of a booster's objective."""
    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _xgboost(model: Any) -> Ensemble:
    import numpy as np
    import xgboost

    booster = model.get_booster()
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    machine = learner["gradient_booster"]
    weights = machine.get("weight_drop")
    machine = machine.get("gbtree", machine)
    if "trees" not in machine["model"]:
        raise _refused(f"XGBoost's booster `{machine.get('name')}`", "train it with gbtree or dart")
    missing = getattr(model, "missing", None)
    if missing is not None and not math.isnan(float(missing)):
        raise _refused(f"an XGBoost model that takes {missing} for a missing value")
    objective = learner["objective"]["name"]
    if objective not in _XGBOOST_LINKS:
        raise _refused(f"XGBoost's objective `{objective}`")
    trees, info = machine["model"]["trees"], machine["model"]["tree_info"]
    iterations = getattr(model, "best_iteration", None) if _stopped_early(model) else None
    if iterations is not None:
        last = machine["model"]["iteration_indptr"][int(iterations) + 1]
        trees, info = trees[:last], info[:last]
    factors = weights or [1.0] * len(trees)
    outputs = max(
        1,
        int(learner["learner_model_param"]["num_class"]),
        int(learner["learner_model_param"]["num_target"]),
    )
    bare = Ensemble(
        trees=tuple(
            tuple(_xgboost_nodes(tree, target, factor))
            for tree, target, factor in zip(trees, info, factors, strict=False)
        ),
        features=int(learner["learner_model_param"]["num_feature"]),
        outputs=outputs,
        base=(0.0,) * outputs,
    )
    # the stored base score changed its meaning between versions: what the library adds is measured
    row = np.zeros((1, bare.features), np.float32)
    until = (0, int(iterations) + 1) if iterations is not None else (0, 0)
    raw = booster.predict(
        xgboost.DMatrix(row), output_margin=True, validate_features=False, iteration_range=until
    )
    base = np.asarray(raw, np.float64).reshape(-1) - bare.sums(row[0])
    return Ensemble(
        trees=bare.trees,
        features=bare.features,
        outputs=outputs,
        base=tuple(base.tolist()),
        link=_XGBOOST_LINKS[objective],
        classes=getattr(model, "classes_", None),
    )


def _stopped_early(model: Any) -> bool:
    return getattr(model, "early_stopping_rounds", None) is not None


def _xgboost_nodes(tree: dict[str, Any], target: int, factor: float) -> Iterator[Node]:
    if int(tree["tree_param"]["size_leaf_vector"]) > 1:
        raise _refused(
            "an XGBoost tree with several values in a leaf", "multi_strategy=one_output_per_tree"
        )
    import numpy as np

    # JSON has the shortest decimals of float32 numbers: only as float32 are they what was meant
    conditions = np.asarray(tree["split_conditions"], np.float32).tolist()
    for at, left in enumerate(tree["left_children"]):
        if left < 0:
            yield Node(targets=(target,), values=(conditions[at] * factor,))
            continue
        if tree["split_type"][at]:
            raise _refused("an XGBoost model with categorical splits")
        yield Node(
            feature=int(tree["split_indices"][at]),
            threshold=conditions[at],
            strict=True,
            missing_left=bool(tree["default_left"][at]),
            left=int(left),
            right=int(tree["right_children"][at]),
        )


# ---- LightGBM

_LIGHTGBM_LINKS = {
    "binary": "sigmoid",
    "multiclass": "softmax",
    "multiclassova": "sigmoid",
    "cross_entropy": "sigmoid",
    "cross_entropy_lambda": "softplus",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
    "regression": "identity",
    "regression_l1": "identity",
    "huber": "identity",
    "fair": "identity",
    "quantile": "identity",
    "mape": "identity",
    "lambdarank": "identity",
    "rank_xendcg": "identity",
}
LIGHTGBM_CLASSIFIERS = ("binary", "multiclass", "multiclassova")


def lightgbm_objective(booster: Any) -> str:
    """Return the objective as the model has it, parameters after it: `binary sigmoid:1`."""
    return str(booster.dump_model(num_iteration=1).get("objective", ""))


def _lightgbm(model: Any) -> Ensemble:
    booster = model.booster_
    described = booster.dump_model()
    objective, *words = str(described.get("objective", "")).split()
    if objective not in _LIGHTGBM_LINKS:
        raise _refused(f"LightGBM's objective `{objective}`")
    per_iteration = int(described["num_tree_per_iteration"])
    trees = described["tree_info"]
    share = len(trees) // per_iteration if described.get("average_output") else 1
    found = []
    for place, tree in enumerate(trees):
        nodes: list[Node] = []
        _lightgbm_nodes(tree["tree_structure"], place % per_iteration, share, nodes)
        found.append(tuple(nodes))
    scale = next((float(word[8:]) for word in words if word.startswith("sigmoid:")), 1.0)
    link = "square" if objective == "regression" and "sqrt" in words else _LIGHTGBM_LINKS[objective]
    return Ensemble(
        trees=tuple(found),
        features=int(described["max_feature_idx"]) + 1,
        outputs=per_iteration,
        base=(0.0,) * per_iteration,
        link=link,
        scale=scale,
        classes=getattr(model, "classes_", None),
    )


def _lightgbm_nodes(root: dict[str, Any], target: int, share: int, nodes: list[Node]) -> None:
    """Append the nodes of a tree: the root first, without recursion, for trees may be deep."""
    todo = [(root, -1, False)]
    places: list[list[int]] = []
    kept: list[dict[str, Any]] = []
    while todo:
        item, parent, is_left = todo.pop()
        at = len(kept)
        kept.append(item)
        places.append([-1, -1])
        if parent >= 0:
            places[parent][0 if is_left else 1] = at
        if "left_child" in item:
            todo += [(item["left_child"], at, True), (item["right_child"], at, False)]
    for item, (left, right) in zip(kept, places, strict=True):
        if left < 0:
            if item.get("leaf_coeff"):
                raise _refused(
                    "a LightGBM model with linear leaves", "train it with linear_tree=false"
                )
            nodes.append(Node(targets=(target,), values=(float(item["leaf_value"]) / share,)))
            continue
        if item["decision_type"] != "<=":
            raise _refused("a LightGBM model with categorical splits")
        threshold, zero_left = float(item["threshold"]), float(item["threshold"]) >= 0
        missing_left = bool(item["default_left"])
        if item["missing_type"] == "None":
            missing_left = zero_left  # NaN is then read as 0
        elif item["missing_type"] == "Zero" and missing_left != zero_left:
            raise _refused("a LightGBM model that takes 0 for a missing value")
        nodes.append(
            Node(
                feature=int(item["split_feature"]),
                threshold=_beyond_zero(threshold),
                missing_left=missing_left,
                left=left,
                right=right,
            )
        )


def _beyond_zero(threshold: float) -> float:
    """Return a threshold that splits as LightGBM does, to which all within 1e-35 of zero is zero."""
    import numpy as np

    zero = np.float32(1e-35)
    if abs(threshold) > zero:
        return threshold
    return float(zero if threshold >= 0 else np.nextafter(-zero, np.float32(-np.inf)))
