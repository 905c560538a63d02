"""Loaded bundles: in this process and in a worker, on a target of the test's own and on a real one."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploykit import _plugins, plugins
from deploykit.bundle import Manifest, Provenance, golden, read_manifest, write_bundle
from deploykit.errors import (
    BundleError,
    PluginError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from deploykit.parity import compare, default_tolerance
from deploykit.processes import MARKER
from deploykit.protocol import CompileRequest, Signature, TensorSpec
from deploykit.session import LoadedSession, load
from deploykit.tensor_spec import parse_input
from deploykit.tensors import read_tensors

AFFINE = """
# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26"]
#
# [tool.deploykit]
# summary = "y = factor * x, in numpy"
# devices = ["cpu"]
# functions = ["load"]
# ///
import json, os, time
from pathlib import Path
from deploykit.errors import UnsupportedError

def load(request):
    settings = json.loads((Path(request.payload) / "affine.json").read_text())
    if request.settings.get("unsupported"):
        raise UnsupportedError("no kernel for operator Frob", operators=("Frob",))
    return Affine(request, settings["factor"])

class Affine:
    def __init__(self, request, factor):
        self.inputs, self.outputs = request.signature.inputs, request.signature.outputs
        self.threads, self.factor, self.running = request.threads, factor, False

    def run(self, feed):
        import numpy as np
        if self.running:
            raise RuntimeError("two threads in one session")
        self.running = True
        x = feed["x"]
        if x.size == 13:
            self.running = False
            raise ValueError("the runtime does not like 13")
        time.sleep(0.002)
        self.running = False
        about = [os.getpid(), self.threads or 0]
        return {"y": x * np.float32(self.factor), "about": np.array(about)}

    def bind(self, feed):
        return Bound(self, feed)

    def close(self):
        self.factor = None

class Bound:
    def __init__(self, session, feed):
        self.session, self.feed, self.last = session, feed, None
    def __call__(self):
        self.last = self.session.run(self.feed)
    def outputs(self):
        return {name: value.copy() for name, value in self.last.items()}
"""

SIGNATURE = Signature(
    inputs=(parse_input("x:float32[N,3]"),),
    outputs=(parse_input("y:float32[N,3]"), parse_input("about:int64[2]")),
)
X = np.array([[1, 2, 3]], np.float32)


def manifest_for(target: str, signature: Signature, **fields: Any) -> Manifest:
    return dataclasses.replace(
        Manifest(
            deploykit="0.1.0",
            signature=signature,
            target=target,
            device="cpu",
            precision="fp32",
            threads=2,
            machine=platform.machine(),
            tolerance=default_tolerance("fp32"),
            provenance=Provenance(source="m", format="onnx", source_sha256="", converter="onnx"),
        ),
        **fields,
    )


@pytest.fixture
def affine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bundle for a target that the user's own plugin folder has."""
    own = tmp_path / "plugins"
    (own / "targets").mkdir(parents=True)
    (own / "targets" / "affine.py").write_text(AFFINE)
    monkeypatch.setenv("DEPLOYKIT_PLUGIN_PATH", str(own))
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path / "home"))
    # what the variable does in a process that starts with it
    monkeypatch.setattr(_plugins, "__path__", [*_plugins.__path__, str(own)])
    (tmp_path / "payload").mkdir()
    (tmp_path / "payload" / "affine.json").write_text('{"factor": 2.5}')
    write_bundle(tmp_path / "bundle", manifest_for("affine", SIGNATURE), tmp_path / "payload")
    yield tmp_path / "bundle"
    sys.modules.pop("deploykit._plugins.targets.affine", None)


@pytest.mark.parametrize("isolated", [None, True])
def test_run_and_bind(affine: Path, isolated: bool | None) -> None:
    with load(affine, isolated=isolated, threads=1) as session:
        assert session.isolated is bool(isolated)
        assert session.inputs == SIGNATURE.inputs
        assert session.outputs == SIGNATURE.outputs
        outputs = session.run({"x": X})
        np.testing.assert_array_equal(outputs["y"], X * 2.5)
        process, threads = outputs["about"]
        assert (process == os.getpid()) is not bool(isolated)
        assert threads == 1
        bound = session.bind({"x": np.repeat(X, 4, axis=0)})
        bound()
        assert bound.outputs()["y"].shape == (4, 3)
        with pytest.raises(UsageError, match="axis 1 is 4, not 3"):
            session.run({"x": np.zeros((1, 4), np.float32)})
        with pytest.raises(UsageError, match="has dtype float64"):
            session.bind({"x": X.astype(float)})
    for call in (session.run, session.bind):
        with pytest.raises(UsageError, match="the session is closed"):
            call({"x": X})
    session.close()  # again is fine


@pytest.mark.parametrize("isolated", [None, True])
def test_errors_of_the_runtime(affine: Path, isolated: bool | None) -> None:
    signature = Signature(inputs=(parse_input("x:float32[N]"),), outputs=SIGNATURE.outputs)
    payload = affine.parent / "payload"
    write_bundle(affine, manifest_for("affine", signature), payload)
    with load(affine, isolated=isolated) as session:
        with pytest.raises(PluginError, match="ValueError: the runtime does not like 13") as caught:
            session.run({"x": np.zeros(13, np.float32)})
        assert re.search(r"affine\.py:\d+ in run", caught.value.frame)
        assert session.run({"x": np.ones(2, np.float32)})["y"].tolist() == [2.5, 2.5]


@pytest.mark.parametrize("isolated", [None, True])
def test_load_that_fails_leaves_no_process(affine: Path, isolated: bool | None) -> None:
    manifest = manifest_for("affine", SIGNATURE, settings={"unsupported": "yes"})
    write_bundle(affine, manifest, affine.parent / "payload")
    with pytest.raises(UnsupportedError) as caught:
        load(affine, isolated=isolated)
    assert caught.value.operators == ("Frob",)
    assert not workers()


def workers() -> list[int]:
    """Return the processes that carry deploykit's mark and work for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            marked = f"{MARKER}=".encode() in (folder / "environ").read_bytes()
        except OSError:
            continue
        if marked and parent == os.getpid():
            found.append(int(folder.name))
    return found


def test_threads_wait_for_each_other(affine: Path) -> None:
    with load(affine) as session:
        results: list[Any] = []

        def work(number: int) -> None:
            for _ in range(10):
                try:
                    results.append((number, session.run({"x": X * number})["y"][0, 0]))
                except Exception as error:
                    results.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 40
    assert all(value == number * 2.5 for number, value in results)


def test_damage_is_seen_unless_not_asked(affine: Path) -> None:
    (affine / "payload" / "affine.json").write_text('{"factor": 3.5}')
    with pytest.raises(BundleError, match=r"affine\.json` has changed"):
        load(affine)
    with load(affine, check=False) as session:
        assert session.run({"x": X})["y"][0, 0] == 3.5


def test_what_this_machine_or_python_lacks(affine: Path) -> None:
    payload = affine.parent / "payload"
    good = manifest_for("affine", SIGNATURE)
    for manifest, says in (
        (dataclasses.replace(good, machine="riscv64"), "the architecture riscv64"),
        (dataclasses.replace(good, target="gone"), "needs the target `gone`"),
    ):
        write_bundle(affine, manifest, payload)
        with pytest.raises(UnavailableError, match=says):
            load(affine)
    write_bundle(affine, good, payload)
    plugin = plugins.target("affine").path
    plugin.write_text(
        AFFINE.replace("numpy>=1.26", "numpy>=1.26", 1).replace(
            '["numpy>=1.26"]', '["numpy>=1.26", "deploykit-no-such-runtime==1"]'
        )
    )
    with pytest.raises(UnavailableError, match="deploykit-no-such-runtime"):
        load(affine, isolated=False)
    with pytest.raises(UnavailableError, match="installing is not allowed"):
        load(affine, install=False)


# --- a real runtime -------------------------------------------------------------------------------


def signature_of(model: onnx.ModelProto) -> Signature:
    constants = {tensor.name for tensor in model.graph.initializer}

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in tensor.shape.dim
        )
        return TensorSpec(name=value.name, dtype=dtype, shape=shape)

    return Signature(
        inputs=tuple(spec(v) for v in model.graph.input if v.name not in constants),
        outputs=tuple(map(spec, model.graph.output)),
    )


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[Path, list[Any]], Path]:
    """A function that compiles an ONNX file for ONNX Runtime, into a bundle with golden pairs."""

    def make(model: Path, pairs: list[Any]) -> Path:
        plugin = plugins.target("onnxruntime")
        payload = tmp_path / "payload"
        payload.mkdir()
        result = importlib.import_module(plugin.module).compile(
            CompileRequest(
                model=str(model),
                payload=str(payload),
                signature=signature_of(onnx.load(model)),
                device="cpu",
                threads=1,
            )
        )
        manifest = manifest_for(
            "onnxruntime", result.signature, settings=result.settings, threads=1
        )
        write_bundle(tmp_path / "bundle", manifest, payload, pairs)
        return tmp_path / "bundle"

    return make


@pytest.mark.parametrize(
    ("name", "isolated"),
    [("optimum_tiny_bert", False), ("mnist_conv_o8", False), ("dtln_1", False), ("dtln_1", True)],
)
def test_real_model_gives_its_golden_outputs(
    shared_models: Path, compiled: Callable[[Path, list[Any]], Path], name: str, isolated: bool
) -> None:
    folder = shared_models / "onnx" / name
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    tensors = read_tensors(folder / "golden.npz")
    feed = {model: tensors[f"in_{key}"] for key, model in names["in"].items()}
    expected = {model: tensors[f"out_{key}"] for key, model in names["out"].items()}
    (model,) = folder.glob("*.onnx")
    bundle = compiled(model, [(feed, expected)])
    manifest = read_manifest(bundle)
    ((kept, wanted),) = golden(bundle, manifest)
    with load(bundle, isolated=isolated) as session:
        for parity in compare(wanted, session.run(kept), manifest.tolerance):
            assert parity.ok, parity.reason


def test_a_run_costs_microseconds_more_than_the_runtime(
    tmp_path: Path, compiled: Callable[[Path, list[Any]], Path]
) -> None:
    """Interleaved rounds of `run` and of the bare runtime; the best of each, on a busy machine too."""
    import onnxruntime
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "relu.onnx")
    feed = {"x": np.ones((1, 16), np.float32)}
    bare = onnxruntime.InferenceSession(tmp_path / "relu.onnx", providers=["CPUExecutionProvider"])
    ours, theirs = [], []
    with load(compiled(tmp_path / "relu.onnx", [])) as session:
        for _ in range(30):
            ours.append(timed(session.run, feed))
            theirs.append(timed(lambda values: bare.run(["y"], values), feed))
    assert min(ours) - min(theirs) < 10e-6


def timed(run: Callable[[Any], Any], feed: Any, times: int = 200) -> float:
    """Return the mean seconds of one run."""
    begun = time.perf_counter()
    for _ in range(times):
        run(feed)
    return (time.perf_counter() - begun) / times


def test_exported() -> None:
    import deploykit

    assert deploykit.load is load
    assert deploykit.LoadedSession is LoadedSession
