"""Bad input, one by one: a clear line, the documented exit code, nothing left behind."""

from __future__ import annotations

import io
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.tensors import write_tensors

from .conftest import CommandLine, Done

USAGE, SOURCE, UNSUPPORTED, OUTPUT, BUNDLE = 2, 3, 4, 8, 13


def refused(deploykit: CommandLine, done: Done, code: int, *words: str) -> None:
    """Check that a command was refused as it should be, and that nothing is left of it."""
    assert done.code == code, done.stderr
    assert len(done.errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr, done.stderr
    assert deploykit.left_behind() == []
    assert not [path for path in deploykit.folder.rglob("*") if path.name.startswith(".")]


@pytest.fixture(scope="module")
def bundle(small_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small model for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("bundle")
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "deploykit",
            "compile",
            small_onnx,
            "-t",
            "onnxruntime",
            "-o",
            str(folder),
            "-q",
        ],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return folder / "onnxruntime-cpu-fp32"


CONTENTS = {
    "empty": b"",
    "random": random.Random(0).randbytes(4096),
    "text": b"Dear sir, please find the model attached.\n" * 20,
    "json": b'{"a": 1}',
    "zip": b"PK\x05\x06" + b"\0" * 18,
}


@pytest.mark.parametrize("command", ["inspect", "convert", "compile", "profile"])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_that_is_no_model(deploykit: CommandLine, command: str, content: str) -> None:
    model = deploykit.folder / "model.onnx"
    model.write_bytes(CONTENTS[content])
    options = {
        "inspect": [],
        "convert": ["-o", "out.onnx"],
        "compile": ["-t", "onnxruntime", "-o", "bundles"],
        "profile": ["-t", "onnxruntime", "-o", "report.json"],
    }
    done = deploykit(command, model, *options[command])
    refused(deploykit, done, SOURCE, "model.onnx")
    assert [path.name for path in deploykit.folder.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_model(deploykit: CommandLine, small_onnx: Path, part: float) -> None:
    whole = small_onnx.read_bytes()
    model = deploykit.folder / "cut.onnx"
    model.write_bytes(whole[: int(len(whole) * part)])
    done = deploykit("convert", model, "-o", "out.onnx")
    refused(deploykit, done, SOURCE, "cut.onnx")
    assert not (deploykit.folder / "out.onnx").exists()


def test_a_model_that_does_not_exist(deploykit: CommandLine) -> None:
    refused(deploykit, deploykit("inspect", "nowhere.onnx"), SOURCE, "nowhere.onnx")


def test_a_missing_weights_file(deploykit: CommandLine, small_onnx: Path) -> None:
    model = onnx.load(small_onnx)
    onnx.save(
        model,
        deploykit.folder / "net.onnx",
        save_as_external_data=True,
        location="net.data",
        size_threshold=0,
    )
    (deploykit.folder / "net.data").unlink()
    done = deploykit("convert", "net.onnx", "-o", "out.onnx")
    refused(deploykit, done, SOURCE, "net.data")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin"])
def test_weights_outside_the_folder(
    deploykit: CommandLine, small_onnx: Path, location: str
) -> None:
    (deploykit.folder.parent / "secret.bin").write_bytes(b"\0" * 4096)
    model = onnx.load(small_onnx)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", "0"), ("length", "432")):
        tensor.external_data.add(key=key, value=value)
    (deploykit.folder / "net.onnx").write_bytes(model.SerializeToString())
    for command in (["inspect", "net.onnx"], ["convert", "net.onnx", "-o", "out.onnx"]):
        refused(deploykit, deploykit(*command), SOURCE, location)


def test_a_folder_with_two_models(deploykit: CommandLine, small_onnx: Path) -> None:
    both = deploykit.folder / "both"
    both.mkdir()
    for name in ("one.onnx", "two.onnx"):
        shutil.copy(small_onnx, both / name)
    done = deploykit("convert", both, "-o", "out.onnx")
    refused(deploykit, done, SOURCE, "one.onnx", "two.onnx")


class Evil:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("open('owned', 'w').close()",)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickle_that_would_execute_code(deploykit: CommandLine, wrapped: bool) -> None:
    payload = pickle.dumps(Evil())
    model = deploykit.folder / "model.pt"
    if wrapped:
        with zipfile.ZipFile(model, "w") as archive:
            archive.writestr("model/data.pkl", payload)
            archive.writestr("model/version", "3\n")
    else:
        model.write_bytes(payload)
    for command in (["inspect", "model.pt"], ["convert", "model.pt", "-o", "out.onnx"]):
        done = deploykit(*command)
        assert done.code in (SOURCE, UNSUPPORTED)
        refused(deploykit, done, done.code, "model.pt")
        assert not (deploykit.folder / "owned").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "MODEL", "-o", "o.onnx", "--from", "pytorh"], ["pytorh"]),
        (["compile", "MODEL", "-t", "onnxrutime", "-o", "b"], ["onnxrutime", "onnxruntime"]),
        (["compile", "MODEL", "-t", "onnxruntime:tpu", "-o", "b"], ["tpu", "cpu"]),
        (["compile", "MODEL", "-t", "onnxruntime", "-o", "b", "--precision", "fp12"], ["fp12"]),
        (["compile", "MODEL", "-t", "onnxruntime", "-o", "b", "--set", "warp=9"], ["warp"]),
        (["compile", "MODEL", "-t", "onnxruntime", "-o", "b", "--set", "warp"], ["warp"]),
        (["compile", "MODEL", "-t", "onnxruntime", "-o", "b", "--shape", "z=1x2"], ["z"]),
        (["compile", "MODEL", "-t", "onnxruntime", "-o", "b", "--shape", "x=1x2"], ["x"]),
        (["convert", "MODEL", "-o", "o.onnx", "--tolerance", "much"], ["much"]),
        (["convert", "MODEL", "-o", "o.onnx", "--memory-limit", "lots"], ["lots"]),
        (["convert", "MODEL", "-o", "o.onnx", "--input", "x float32"], ["x float32"]),
        (["convert", "MODEL", "-o", "o.onnx", "--input", "nosuch:float32[1,3,8,8]"], ["nosuch"]),
        (["convert", "MODEL", "-o", "o.onnx", "--input", "x:float32[1,3]"], ["x"]),
        (["convert", "MODEL", "-o", "o.onnx", "--sample", "none.npz"], ["none.npz"]),
        (["profile", "MODEL", "-t", "onnxrutime"], ["onnxrutime"]),
        (["env", "create", "pytorh"], ["pytorh"]),
    ],
)
def test_words_that_make_no_sense(
    deploykit: CommandLine, small_onnx: Path, arguments: list[str], words: list[str]
) -> None:
    done = deploykit(*[str(small_onnx) if word == "MODEL" else word for word in arguments])
    refused(deploykit, done, USAGE, *words)
    assert not (deploykit.folder / "o.onnx").exists()


FEEDS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown name": ({"z": np.zeros((1, 3, 8, 8), np.float32)}, "z"),
    "wrong dtype": ({"x": np.zeros((1, 3, 8, 8), np.float64)}, "float64"),
    "wrong size": ({"x": np.zeros((1, 4, 8, 8), np.float32)}, "4"),
    "wrong rank": ({"x": np.zeros((3, 8, 8), np.float32)}, "3 axes"),
    "nothing": ({}, "x"),
}


@pytest.mark.parametrize("kind", FEEDS)
def test_inputs_that_do_not_fit(deploykit: CommandLine, bundle: Path, kind: str) -> None:
    feed, word = FEEDS[kind]
    write_tensors(deploykit.folder / "feed.npz", feed)
    done = deploykit("run", bundle, "--input", "feed.npz", "-o", "out.npz")
    refused(deploykit, done, USAGE, word)
    assert not (deploykit.folder / "out.npz").exists()


def test_inputs_that_are_pickled_objects(deploykit: CommandLine, bundle: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, x=np.array([Evil()], dtype=object))
    (deploykit.folder / "feed.npz").write_bytes(stream.getvalue())
    done = deploykit("run", bundle, "--input", "feed.npz")
    refused(deploykit, done, USAGE, "feed.npz")
    assert not (deploykit.folder / "owned").exists()


@pytest.mark.parametrize("output", ["file/out.onnx", "/proc/out.onnx", "nofolder/out.onnx"])
def test_an_output_that_cannot_be_written(
    deploykit: CommandLine, small_onnx: Path, output: str
) -> None:
    (deploykit.folder / "file").write_text("a file, not a folder")
    refused(deploykit, deploykit("convert", small_onnx, "-o", output), OUTPUT, "out.onnx"[:3])
    folder = str(Path(output).parent) if output.startswith(("file", "/proc")) else "file"
    done = deploykit("compile", small_onnx, "-t", "onnxruntime", "-o", f"{folder}/bundles")
    refused(deploykit, done, OUTPUT, "bundles")
    done = deploykit("profile", small_onnx, "-t", "onnxruntime", "-o", f"{folder}/r/report.json")
    refused(deploykit, done, OUTPUT)


def _on_a_full_disk(deploykit: CommandLine, *arguments: str | Path) -> Done:
    """Run a command in a folder on a file system of 256 KiB."""
    place = deploykit.folder / "full"
    place.mkdir()
    inner = f'mount -t tmpfs -o size=256k none "{place}" && shift 0 && "$@"; code=$?; '
    inner += f'echo "LEFT: $(ls -A "{place}" | tr "\\n" " ")" >&2; exit $code'
    process = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inner, "sh", sys.executable, "-m", "deploykit"]
        + [str(argument) for argument in arguments],
        cwd=deploykit.folder,
        env=deploykit.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    place.rmdir()
    return Done(process.returncode, process.stdout, process.stderr)


def _can_mount() -> bool:
    tried = "mount -t tmpfs none /mnt"
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rm", "sh", "-c", tried], check=False).returncode == 0


@pytest.mark.parametrize("command", ["convert", "compile", "run"])
def test_a_full_disk(deploykit: CommandLine, bundle: Path, command: str) -> None:
    if not _can_mount():
        pytest.skip("this system lets nobody mount a small file system")
    weights = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 300])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 300])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (deploykit.folder / "large.onnx").write_bytes(model.SerializeToString())
    feed = {"x": np.zeros((20000, 3, 8, 8), np.float32)}
    write_tensors(deploykit.folder / "feed.npz", feed)
    arguments: dict[str, list[str | Path]] = {
        "convert": ["convert", "large.onnx", "-o", "full/out.onnx"],
        "compile": ["compile", "large.onnx", "-t", "onnxruntime", "-o", "full/bundles"],
        "run": ["run", bundle, "--input", "feed.npz", "-o", "full/out.npz"],
    }
    done = _on_a_full_disk(deploykit, *arguments[command])
    refused(deploykit, done, OUTPUT, "No space left")
    left = done.stderr.rpartition("LEFT: ")[2].split()
    assert left in ([], ["bundles"]), "nothing half written"


def test_a_damaged_bundle(deploykit: CommandLine, bundle: Path) -> None:
    copy = deploykit.folder / "copy"
    shutil.copytree(bundle, copy)
    payload = next(path for path in (copy / "payload").rglob("*") if path.is_file())
    content = bytearray(payload.read_bytes())
    content[len(content) // 2] ^= 1
    payload.write_bytes(content)
    refused(deploykit, deploykit("verify", copy), BUNDLE, payload.name)
    refused(deploykit, deploykit("profile", copy, "--duration", "1"), BUNDLE, payload.name)


def test_a_folder_that_is_no_bundle(deploykit: CommandLine) -> None:
    (deploykit.folder / "empty").mkdir()
    refused(deploykit, deploykit("verify", "empty"), BUNDLE, "empty")
    refused(deploykit, deploykit("verify", "nowhere"), USAGE, "nowhere")
