"""Theano to ONNX: what Theano 1.0 computed, from graphs, Lasagne networks and parameter sets.

`tests/fixtures/make_theano_goldens.py` recorded the outputs with Theano itself.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deploykit import convert as convert_model
from deploykit import environments, plugins
from deploykit.errors import PluginError, SourceError, UnsupportedError, UsageError
from deploykit.options import SourceOptions
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    DynamicAxis,
    ReferenceRequest,
    Signature,
    Source,
)
from deploykit.steps import Worker
from deploykit.tensor_spec import parse_input

pytestmark = pytest.mark.environment

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "theano"
NETWORKS = FIXTURES / "networks.py"
LASAGNE = FIXTURES / "lasagne_networks.py"
SIGNATURES = {
    "mlp": (["x:float32[x_axis0,20]"], ["scores:float32[x_axis0,5]", "argmax:int64[x_axis0]"]),
    "lenet": (["x:float32[x_axis0,784]"], None),
    "borders": (["x:float32[x_axis0,4,x_axis2,x_axis3]"], None),
    "upward": (["x:float32[x_axis0,3,x_axis2,x_axis3]"], None),
    "lstm": (["x:float32[x_axis0,x_axis1,7]", "mask:float32[mask_axis0,x_axis1]"], None),
    "gru": (["words:int32[words_axis0,words_axis1]"], None),
    "power": (["x:float32[x_axis0]"], None),
    "autoencoder": (
        ["x:float32[x_axis0,30]"],
        ["code:float32[x_axis0,12]", "rebuilt:float32[x_axis0,30]"],
    ),
    "normalised": (["x:float32[x_axis0,3,x_axis2,x_axis3]"], None),
    "elements": (["x:float32[x_axis0,x_axis1]", "n:int64[x_axis0,x_axis1]"], None),
    "parts": (["x:float32[x_axis0,x_axis1]", "y:int32[y_axis0]"], None),
    "loops": (["x:float32[x_axis0,x_axis1]", "v:float32[v_axis0]", "k:int32[]"], None),
    "indices": (["x:float32[x_axis0,x_axis1,x_axis2,x_axis3]", "i:int32[i_axis0]"], None),
    "depths": (["x:float32[x_axis0,2,x_axis2,x_axis3,x_axis4]"], None),
    "bytes_and_classes": (
        [
            *("x:int8[x_axis0,x_axis1]", "y:int8[x_axis0,x_axis1]"),
            *("p:float32[p_axis0,p_axis1]", "c:int32[p_axis0]"),
        ],
        None,
    ),
}

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    python = environments.interpreter(plugins.converter("theano"))
    with Worker(plugins.converter("theano"), python=python, label="theano", threads=2) as worker:
        yield worker


@pytest.fixture(scope="module")
def goldens() -> dict[str, Array]:
    with np.load(FIXTURES / "goldens.npz") as stored:
        return {name: stored[name] for name in stored.files}


def golden(goldens: Mapping[str, Array], name: str) -> tuple[dict[str, Array], list[Array]]:
    feed = {key.split("/")[2]: one for key, one in goldens.items() if key.startswith(f"{name}/in/")}
    outputs = [goldens[key] for key in sorted(goldens) if key.startswith(f"{name}/out/")]
    assert feed
    assert outputs
    return feed, outputs


def graph(location: str, *inputs: str, **settings: str) -> Source:
    return Source(
        location=location,
        format="theano/reference",
        inputs=tuple(parse_input(text) for text in inputs),
        options=settings,
    )


def written(folder: Path, code: str, name: str = "build") -> Source:
    path = folder / "net.py"
    path.write_text(f"import numpy as np\nimport theano\nimport theano.tensor as T\n{code}\n")
    return graph(f"{path}:{name}")


def parameters(path: Path, *, trust: bool = False, **settings: str) -> Source:
    return Source(location=str(path), format="theano/parameters", options=settings, trust=trust)


def convert(
    worker: Worker, source: Source, output: Path, *axes: DynamicAxis, opset: int | None = None
) -> ConvertResult:
    request = ConvertRequest(source=source, output=str(output), opset=opset, dynamic=axes)
    return worker.call("convert", request, ConvertResult)


def run(output: Path, feed: Mapping[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(output)
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def reference(worker: Worker, source: Source, feed: dict[str, Array]) -> dict[str, Array]:
    session = worker.open(ReferenceRequest(source=source))
    found = session.run(feed)
    session.close()
    return found


def assert_close(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape
    scale = np.abs(expected).max(initial=1e-3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


# ---- refusals


@pytest.mark.parametrize(
    ("code", "operator", "hint"),
    [
        (
            (
                "from theano.tensor.shared_randomstreams import RandomStreams\n"
                "def build():\n    x = T.matrix('x')\n"
                "    return [x], x * RandomStreams(1).binomial(size=x.shape, p=0.5)"
            ),
            "BinomialRV",
            "deterministic",
        ),
        (
            (
                "from theano.tensor.nnet.neighbours import images2neibs\n"
                "def build():\n    x = T.tensor4('x')\n    return [x], images2neibs(x, (2, 2))"
            ),
            "Images2Neibs",
            "other operators",
        ),
        (
            "def build():\n    x = T.matrix('x')\n    return [x], T.gamma(x)",
            "Gamma",
            "other operators",
        ),
        (
            (
                "def build():\n    x = T.vector('x')\n"
                "    y, _ = theano.scan(lambda a: T.psi(a), sequences=x)\n    return [x], y"
            ),
            "Psi",
            "other operators",
        ),
    ],
)
def test_an_operator_without_onnx_form_is_named(
    worker: Worker, tmp_path: Path, code: str, operator: str, hint: str
) -> None:
    with pytest.raises(UnsupportedError, match=operator) as error:
        convert(worker, written(tmp_path, code), tmp_path / "m.onnx")
    assert error.value.operators == (operator,)
    assert hint in error.value.hint
    assert not (tmp_path / "m.onnx").exists()


def test_noise_of_a_network_in_training_is_refused(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="mrg_uniform") as error:
        convert(worker, graph(f"{LASAGNE}:in_training"), tmp_path / "m.onnx")
    assert "deterministic=True" in error.value.hint


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def build():\n    return 7", "returned a int"),
        ("def build(size):\n    return 7", "asks for size"),
        ("def build():\n    x = T.matrix('x')\n    return [x * 2], x", "computed or holds a value"),
        (
            "def build():\n    x = T.matrix('x')\n    return [x], [x, 'y']",
            "a str among its outputs",
        ),
        ("def build():\n    return [], T.zeros(3)", "no inputs"),
        ("import nowhere_to_be_found\ndef build():\n    pass", "nowhere_to_be_found"),
        ("print 'Python 2'\ndef build():\n    pass", "net.py"),
    ],
)
def test_code_that_builds_no_graph_is_an_error(
    worker: Worker, tmp_path: Path, code: str, words: str
) -> None:
    with pytest.raises(SourceError, match=words):
        convert(worker, written(tmp_path, code), tmp_path / "m.onnx")


def test_an_input_that_is_not_returned_is_named(worker: Worker, tmp_path: Path) -> None:
    code = "def build():\n    x, z = T.matrix('x'), T.matrix('z')\n    return [x], x + z"
    with pytest.raises(UnsupportedError, match="`z`"):
        convert(worker, written(tmp_path, code), tmp_path / "m.onnx")


def test_a_step_of_training_is_no_network(worker: Worker, tmp_path: Path) -> None:
    code = (
        "def build():\n    x, w = T.vector('x'), theano.shared(np.zeros(3, 'float32'))\n"
        "    return theano.function([x], (x * w).sum(), updates=[(w, w + x)])"
    )
    with pytest.raises(UnsupportedError, match="step of training"):
        convert(worker, written(tmp_path, code), tmp_path / "m.onnx")


def test_words_about_inputs_that_do_not_fit(worker: Worker, tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    location = f"{NETWORKS}:mlp"
    for source, words in [
        (graph(location, "y:float32[1,20]"), "no input `y`"),
        (graph(location, "x:float64[1,20]"), "of float32, not float64"),
        (graph(location, "x:float32[20]"), "2 axes, not 1"),
        (graph(location, floatX="float16"), "cannot be `float16`"),
        (graph(location, floatx="float32"), "has no setting `floatx`"),
        (graph(location, module="x.py:y"), "names the code"),
    ]:
        with pytest.raises(UsageError, match=words):
            convert(worker, source, output)


# ---- graphs


@pytest.mark.parametrize("name", SIGNATURES)
def test_onnx_and_reference_give_what_theano_gave(
    worker: Worker, goldens: dict[str, Array], tmp_path: Path, name: str
) -> None:
    source, output = graph(f"{NETWORKS}:{name}"), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    inputs, outputs = SIGNATURES[name]
    assert [str(one) for one in result.signature.inputs] == inputs
    assert outputs is None or [str(one) for one in result.signature.outputs] == outputs
    assert [one.name for one in worker.call("inspect", source, Signature).inputs] == [
        one.name for one in result.signature.inputs
    ]
    feed, expected = golden(goldens, name)
    found, evaluated = run(output, feed), reference(worker, source, feed)
    assert list(found) == list(evaluated)
    assert len(found) == len(expected)
    for (key, one), wanted in zip(found.items(), expected, strict=True):
        assert one.dtype == evaluated[key].dtype
        assert_close(one, wanted)
        assert_close(evaluated[key], wanted)


def test_a_convolution_turns_its_kernel(worker: Worker, tmp_path: Path) -> None:
    code = (
        "K = np.arange(6, dtype='float32').reshape(1, 1, 2, 3)\n"
        "def build():\n    x = T.tensor4('x')\n"
        "    return [x], T.nnet.conv2d(x, theano.shared(K), border_mode='full')"
    )
    source, output = written(tmp_path, code), tmp_path / "m.onnx"
    convert(worker, source, output)
    impulse = np.zeros((1, 1, 3, 3), "float32")
    impulse[0, 0, 1, 1] = 1
    # an impulse gives the kernel back as it is, which a correlation would not
    expected = np.zeros((1, 1, 4, 5), "float32")
    expected[0, 0, 1:3, 1:4] = np.arange(6).reshape(2, 3)
    for found in (run(output, {"x": impulse}), reference(worker, source, {"x": impulse})):
        np.testing.assert_array_equal(found["output"], expected)


def test_a_loop_ends_by_what_it_computes(worker: Worker, tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    convert(worker, graph(f"{NETWORKS}:power"), output)
    for x in ([1, 2, 3], [30, 30], [0.001]):
        last = np.asarray(x, "float32")
        steps: list[Array] = []
        while len(steps) < 20 and (not steps or steps[-1].sum() / 2 <= 50):
            last = last * 2
            steps.append(last)
        found = run(output, {"x": np.asarray(x, "float32")})
        np.testing.assert_allclose(found["output_0"], steps)
        total = np.sum(steps)
        np.testing.assert_allclose(found["output_1"], total if total > 100 else -total, rtol=1e-6)


def test_a_compiled_function_is_its_graph(worker: Worker, tmp_path: Path) -> None:
    code = (
        "def build():\n    x, w = T.matrix('x'), theano.shared(np.full((3, 2), 2, 'float32'), 'w')\n"
        "    return theano.function([x], T.dot(x, w))"
    )
    output = tmp_path / "m.onnx"
    result = convert(worker, written(tmp_path, code), output)
    assert [str(one) for one in result.signature.inputs] == ["x:float32[x_axis0,3]"]
    found = run(output, {"x": np.ones((4, 3), "float32")})
    np.testing.assert_array_equal(found["output"], np.full((4, 2), 6))


def test_theanos_softmax_of_a_vector_is_a_row(worker: Worker, tmp_path: Path) -> None:
    code = "def build():\n    x = T.vector('x')\n    return [x], T.nnet.softmax(x)"
    output = tmp_path / "m.onnx"
    convert(worker, written(tmp_path, code), output)
    found = run(output, {"x": np.zeros(4, "float32")})["output"]
    np.testing.assert_array_equal(found, np.full((1, 4), 0.25))


def test_double_precision_where_it_is_asked_for(worker: Worker, tmp_path: Path) -> None:
    source, output = graph(f"{NETWORKS}:mlp", floatX="float64"), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert str(result.signature.inputs[0]) == "x:float64[x_axis0,20]"
    feed = {"x": np.random.default_rng(0).normal(size=(3, 20))}
    expected = reference(worker, source, feed)["scores"]
    np.testing.assert_allclose(run(output, feed)["scores"], expected, rtol=1e-12)
    # and the next model of the same worker is single again
    again = worker.call("inspect", graph(f"{NETWORKS}:mlp"), Signature)
    assert again.inputs[0].dtype == "float32"


def test_what_the_user_says_of_inputs_is_kept(worker: Worker, tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    source = graph(f"{NETWORKS}:borders", "x:float32[n,4,12,wide]")
    result = convert(
        worker, source, output, DynamicAxis(input="x", axis=3, name="columns"), opset=18
    )
    assert str(result.signature.inputs[0]) == "x:float32[n,4,12,columns]"
    assert result.opset == 18
    fixed = convert(worker, graph(f"{NETWORKS}:mlp", "x:float32[7,20]"), output)
    assert str(fixed.signature.outputs[0]) == "scores:float32[7,5]"


def test_sizes_that_the_graph_rejects_are_an_error_of_the_source(worker: Worker) -> None:
    with pytest.raises(PluginError, match="ValueError"):
        reference(worker, graph(f"{NETWORKS}:mlp"), {"x": np.zeros((2, 19), "float32")})


# ---- parameters


@pytest.mark.parametrize(
    "name", ["lasagne.npz", "lasagne.pkl", "python2_0.pkl", "python2_1.pkl", "python2_2.pkl"]
)
@pytest.mark.parametrize("function", ["convnet", "graph"])
def test_a_lasagne_network_with_its_parameters(
    worker: Worker, goldens: dict[str, Array], tmp_path: Path, name: str, function: str
) -> None:
    source = parameters(FIXTURES / name, module=f"lasagne_networks.py:{function}")
    output = tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert result.signature.inputs[0].name == "image"
    feed, (expected,) = golden(goldens, "lasagne")
    (found,) = run(output, feed).values()
    assert_close(found, expected)
    (evaluated,) = reference(worker, source, feed).values()
    assert_close(evaluated, expected)


def test_the_whole_way_from_a_pickle(goldens: dict[str, Array], tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    options = SourceOptions(settings={"module": "lasagne_networks.py:convnet"})
    conversion = convert_model(FIXTURES / "python2_0.pkl", output, source=options)
    assert (conversion.format, conversion.verified) == ("theano/parameters", True)
    feed, (expected,) = golden(goldens, "lasagne")
    assert_close(run(output, feed)["probabilities"], expected)


def test_parameters_that_do_not_fit(worker: Worker, tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    with np.load(FIXTURES / "lasagne.npz") as stored:
        values = [stored[f"arr_{at}"] for at in range(len(stored.files))]
    few, turned, named = (tmp_path / f"{name}.npz" for name in ("few", "turned", "named"))
    np.savez(few, *values[:-1])
    np.savez(turned, *values[:-2], values[-2].T, values[-1])
    np.savez(named, W=values[0])
    module = f"{LASAGNE}:convnet"
    for source, kind, words in [
        (parameters(few, module=module), SourceError, "holds 7 arrays, the graph has 8"),
        (parameters(turned, module=module), SourceError, r"array 6 has the shape \[5, 16\]"),
        (parameters(few), UsageError, "7 arrays and no graph"),
        (parameters(few, module="convnet"), UsageError, "is `convnet`"),
        (parameters(few, module="gone.py:convnet"), UsageError, "gone.py"),
        (parameters(few, module=f"{NETWORKS}:mlp"), UsageError, "in which order"),
        (parameters(named, module=f"{NETWORKS}:mlp"), SourceError, "lacks `"),
    ]:
        with pytest.raises(kind, match=words):
            convert(worker, source, output)


def test_parameters_by_name(worker: Worker, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    shapes = {"W": (30, 12), "b": (12,), "b_prime": (30,)}
    values = {name: random.normal(size=shape) for name, shape in shapes.items()}
    np.savez(tmp_path / "named.npz", **values)  # type: ignore[arg-type]
    output = tmp_path / "m.onnx"
    convert(worker, parameters(tmp_path / "named.npz", module=f"{NETWORKS}:autoencoder"), output)
    x = random.normal(size=(2, 30)).astype("float32")
    code = 1 / (1 + np.exp(-(x @ values["W"] + values["b"])))
    rebuilt = 1 / (1 + np.exp(-(code @ values["W"].T + values["b_prime"])))
    found = run(output, {"x": x})
    np.testing.assert_allclose(found["code"], code, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["rebuilt"], rebuilt, rtol=1e-4, atol=1e-6)


def test_a_pickle_of_objects_is_read_with_trust_only(
    worker: Worker, goldens: dict[str, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(FIXTURES / "lasagne.npz") as stored:
        values = [stored[f"arr_{at}"] for at in range(len(stored.files))]
    marker = tmp_path / "ran"
    evil = tmp_path / "evil.pkl"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    evil.write_bytes(b"cbuiltins\nexec\n(S" + repr(code).encode() + b"\ntR.")
    module = f"{LASAGNE}:convnet"
    with pytest.raises(SourceError, match=r"builtins\.exec"):
        convert(worker, parameters(evil, module=module), tmp_path / "m.onnx")
    assert not marker.exists()

    path = tmp_path / "objects.pkl"
    path.write_bytes(b"ccollections\nCounter\n(tR.")
    with pytest.raises(SourceError, match="collections"):
        convert(worker, parameters(path, module=module), tmp_path / "m.onnx")
    module_of_gpu = types.ModuleType("theano.sandbox.cuda.type")

    def unpickle(array: Array) -> Array:
        return array

    unpickle.__module__, unpickle.__qualname__ = module_of_gpu.__name__, "CudaNdarray_unpickler"
    vars(module_of_gpu)["CudaNdarray_unpickler"] = unpickle
    for name in ("theano", "theano.sandbox", "theano.sandbox.cuda"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module_of_gpu.__name__, module_of_gpu)

    class OnGpu:
        def __init__(self, value: Array) -> None:
            self.value = value

        def __reduce__(self) -> tuple[Any, ...]:
            return unpickle, (self.value,)

    path.write_bytes(pickle.dumps([OnGpu(value) for value in values], 2))
    feed, (expected,) = golden(goldens, "lasagne")
    for trust in (False, True):
        source = parameters(path, trust=trust, module=module)
        convert(worker, source, tmp_path / "m.onnx")
        assert_close(run(tmp_path / "m.onnx", feed)["probabilities"], expected)
        (tmp_path / "m.onnx").unlink()


def test_arrays_of_objects_are_pickles_too(
    worker: Worker, goldens: dict[str, Array], tmp_path: Path
) -> None:
    with np.load(FIXTURES / "lasagne.npz") as stored:
        values = [stored[f"arr_{at}"] for at in range(len(stored.files))]
    held = np.empty(len(values), dtype=object)
    held[:] = values
    np.save(tmp_path / "objects.npy", held, allow_pickle=True)
    output = tmp_path / "m.onnx"
    source = parameters(tmp_path / "objects.npy", module=f"{LASAGNE}:convnet")
    convert(worker, source, output)
    feed, (expected,) = golden(goldens, "lasagne")
    assert_close(run(output, feed)["probabilities"], expected)


@pytest.mark.parametrize("name", ["lasagne.npz", "lasagne.pkl"])
def test_damaged_files_are_errors(worker: Worker, tmp_path: Path, name: str) -> None:
    data = (FIXTURES / name).read_bytes()
    for at, cut in enumerate((10, len(data) // 2, len(data) - 3)):
        path = tmp_path / f"{at}.{name}"
        path.write_bytes(data[:cut])
        with pytest.raises(SourceError):
            convert(worker, parameters(path, module=f"{LASAGNE}:convnet"), tmp_path / "m.onnx")
