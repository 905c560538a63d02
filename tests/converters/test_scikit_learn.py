"""scikit-learn, XGBoost and LightGBM to ONNX: the same labels and probabilities, also at thresholds."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import deploykit as dk
from deploykit import environments, plugins
from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.protocol import ConvertRequest, ConvertResult, ReferenceRequest, Signature, Source
from deploykit.steps import Worker
from deploykit.tensor_spec import parse_input

pytestmark = pytest.mark.environment

MAKE_MODELS = Path(__file__).resolve().parent.parent / "fixtures" / "make_scikit_learn_models.py"
TAKE_MISSING = ("forest_missing", "histogram", "xgboost", "lightgbm", "decision_tree")
FORMATS = {
    ".pkl": "scikit-learn/pickle",
    ".joblib": "scikit-learn/pickle",
    ".skops": "scikit-learn/skops",
    ".json": "xgboost/model",
    ".ubj": "xgboost/model",
    ".txt": "lightgbm/model",
}
PICKLES = (
    *("forest", "forest_missing", "extra_trees", "decision_tree", "two_targets"),
    *("gradient_boosting", "histogram", "histogram_binary", "histogram_poisson", "lightgbm"),
    *("xgboost", "xgboost_binary", "logistic", "scaled_xgboost", "scaled_forest", "ridge"),
    *("linear_svc", "svc", "svr", "mlp", "neighbours", "bayes", "clusters", "pca"),
    *("stacking", "voting", "isolation"),
)
FILES = (
    *(f"{name}.pkl" for name in PICKLES),
    *("forest.joblib", "plain.joblib", "logistic.skops", "forest.skops"),
    *("xgboost.json", "xgboost_binary.json", "xgboost_dart.json", "xgboost_poisson.json"),
    *("xgboost.ubj", "lightgbm.txt", "lightgbm_binary.txt", "lightgbm_forest.txt"),
)

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def python() -> Path:
    return environments.interpreter(plugins.converter("scikit-learn"))


@pytest.fixture(scope="module")
def files(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scikit_learn")
    command: list[str | Path] = [python, "-I", "-W", "ignore", MAKE_MODELS, folder]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def worker(python: Path) -> Iterator[Worker]:
    plugin = plugins.converter("scikit-learn")
    with Worker(plugin, python=python, label="scikit-learn", threads=2) as worker:
        yield worker


def source(path: Path, *inputs: str, trust: bool = True, **settings: str) -> Source:
    return Source(
        location=str(path),
        format=FORMATS[path.suffix],
        inputs=tuple(parse_input(text) for text in inputs),
        options=settings,
        trust=trust,
    )


def convert(worker: Worker, model: Source, output: Path) -> ConvertResult:
    request = ConvertRequest(source=model, output=str(output))
    return worker.call("convert", request, ConvertResult)


@pytest.mark.parametrize("name", FILES)
def test_it_predicts_what_the_library_predicts(
    worker: Worker, files: Path, tmp_path: Path, name: str
) -> None:
    assert dk.inspect(files / name).format == FORMATS[Path(name).suffix]
    model, output = source(files / name), tmp_path / "m.onnx"
    result = convert(worker, model, output)
    session = onnxruntime.InferenceSession(output)
    rows = np.load(files / "rows.npy")
    if not name.startswith(TAKE_MISSING):
        rows = np.nan_to_num(rows, nan=0.5)
    reference = worker.open(ReferenceRequest(source=model))
    wanted = reference.run({"X": rows})
    reference.close()
    names = [spec.name for spec in result.signature.outputs]
    assert names in (["label", "probabilities"], ["label", "scores"], ["variable"])
    assert result.signature.inputs[0].shape == ("batch", 6)
    for key, value in zip(names, session.run(names, {"X": rows}), strict=True):
        assert value.shape == wanted[key].shape
        if key == "label":
            assert value.tolist() == wanted[key].tolist()
        else:
            scale = max(1.0, float(np.abs(wanted[key]).max()))
            np.testing.assert_allclose(value, wanted[key], rtol=1e-4, atol=1e-4 * scale)
    if "probabilities" in names:
        assert len(np.unique(wanted["label"])) > 1


def test_columns_of_a_data_frame_become_inputs(worker: Worker, files: Path, tmp_path: Path) -> None:
    model, output = source(files / "columns.pkl"), tmp_path / "m.onnx"
    result = convert(worker, model, output)
    assert [str(spec) for spec in result.signature.inputs] == [
        "age:float32[batch,1]",
        "town:string[batch,1]",
        "income:float32[batch,1]",
    ]
    generator = np.random.default_rng(1)
    feed: dict[str, Array] = {
        "age": generator.normal(40, 12, (60, 1)).astype(np.float32),
        "town": generator.choice(["Bern", "Graz", "Lyon", "Oslo"], (60, 1)).astype(object),
        "income": generator.normal(3000, 900, (60, 1)).astype(np.float32),
    }
    feed["income"][::7] = np.nan
    reference = worker.open(ReferenceRequest(source=model))
    wanted = reference.run({**feed, "town": feed["town"].astype(str)})
    label, probabilities = onnxruntime.InferenceSession(output).run(None, feed)
    np.testing.assert_array_equal(label, wanted["label"])
    np.testing.assert_allclose(probabilities, wanted["probabilities"], atol=1e-5)


def test_a_pickle_runs_only_when_trusted(worker: Worker, files: Path, tmp_path: Path) -> None:
    for name in ("forest.pkl", "forest.joblib"):
        with pytest.raises(UnsupportedError, match="can run any code") as raised:
            worker.call("inspect", source(files / name, trust=False), Signature)
        assert "--trust" in raised.value.hint
    with pytest.raises(UnsupportedError, match=r"sklearn\.tree\._tree\.Tree") as raised:
        worker.call("inspect", source(files / "forest.skops", trust=False), Signature)
    assert "--trust" in raised.value.hint
    # what skops knows to be safe, and boosters, hold no code
    for name in ("logistic.skops", "xgboost.json", "lightgbm.txt"):
        convert(worker, source(files / name, trust=False), tmp_path / f"{name}.onnx")


@pytest.mark.parametrize("name", ["xgboost.json", "xgboost.ubj", "lightgbm.txt", "forest.skops"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_damaged_files(
    worker: Worker, files: Path, tmp_path: Path, name: str, share: float
) -> None:
    whole = (files / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SourceError):
        worker.call("inspect", source(cut), Signature)


def test_what_is_no_fitted_model(worker: Worker, files: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pkl"
    other.write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(SourceError, match="holds a dict of model"):
        worker.call("inspect", source(other), Signature)
    other.write_bytes(b"\x80\x04csklearn.nowhere\nThing\n.")
    with pytest.raises(UnsupportedError, match="needs code that is not there"):
        worker.call("inspect", source(other), Signature)
    with pytest.raises(UsageError, match="no input `Z`"):
        worker.call("inspect", source(files / "forest.pkl", "Z:float32[1,6]"), Signature)
    with pytest.raises(UsageError, match="asked for"):
        worker.call("inspect", source(files / "forest.pkl", "X:float32[1,7]"), Signature)
    with pytest.raises(UsageError, match="has no setting"):
        worker.call("inspect", source(files / "forest.pkl", a="b"), Signature)


def test_the_whole_command(files: Path, tmp_path: Path) -> None:
    conversion = dk.convert(files / "xgboost.json", tmp_path / "m.onnx")
    assert (conversion.format, conversion.verified) == ("xgboost/model", True)
