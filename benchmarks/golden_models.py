"""Real models with golden inputs and outputs, and what an ONNX file makes of them.

A model is a folder `FORMAT/NAME` with its files, `golden.npz` (arrays `in_KEY` and `out_KEY`) and
`golden.json` (`framework`, and in `tensor_names` the model's own name of each key). Where there is
`golden_second_call.npz` too, the model keeps state, and that call came after the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from deploykit.parity import Tolerance

    Array = np.ndarray[Any, Any]

# what converters do to names that ONNX tools take badly
_UNSAFE = re.compile(r"[^A-Za-z0-9_.]+")


@dataclass(frozen=True, kw_only=True)
class GoldenModel:
    """A folder with a model, what was fed to it, and what its own framework gave."""

    folder: Path
    framework: str
    feed: dict[str, Array]
    expected: dict[str, Array]
    later: tuple[tuple[dict[str, Array], dict[str, Array]], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def group(self) -> str:
        """The name of the format, as the folders have it."""
        return self.folder.parent.name

    @property
    def keras_backend(self) -> str | None:
        """The backend that computed the golden outputs of a Keras 1 model, which does not say it."""
        found = re.search(
            r"Keras .*(theano|tensorflow|cntk) backend", self.framework, re.IGNORECASE
        )
        return found[1].lower() if found else None


def find(models: Path, wanted: tuple[str, ...] = ()) -> list[GoldenModel]:
    """Return the models below `models` that have golden outputs, those in `wanted` or all.

    `wanted` names formats (`caffe2`) or models (`caffe2/style_transfer_mosaic`).
    """
    found = []
    for about in sorted(models.glob("*/*/golden.json")):
        folder = about.parent
        names = {folder.parent.name, f"{folder.parent.name}/{folder.name}"}
        if not wanted or names & set(wanted):
            found.append(read(folder))
    return found


def read(folder: Path) -> GoldenModel:
    """Return the model in `folder`."""
    found = [
        _calls(path)
        for path in (folder / "golden", folder / "golden_second_call")
        if path.with_suffix(".json").is_file()
    ]
    first, *later = (call for calls, _ in found for call in calls)
    return GoldenModel(
        folder=folder,
        framework=found[0][1],
        feed=first[0],
        expected=first[1],
        later=tuple(later),
    )


def _calls(stem: Path) -> tuple[list[tuple[dict[str, Array], dict[str, Array]]], str]:
    """Return inputs and outputs of the calls in a golden file, and the framework that made it."""
    import numpy as np

    from deploykit.tensors import read_tensors

    about = json.loads(stem.with_suffix(".json").read_text())
    tensors = read_tensors(stem.with_suffix(".npz"))
    feed, expected = (
        {name: tensors[f"{side}_{key}"] for key, name in about["tensor_names"][side].items()}
        for side in ("in", "out")
    )
    if found := re.search(r"LoD with offsets ([\d,]+)", about.get("note", "")):
        borders = [int(border) for border in found[1].split(",")]
        lengths = np.diff(np.array(borders, np.int64))
        # ONNX has no ragged tensors: the borders are inputs of their own
        ragged = [name for name, array in feed.items() if len(array) == borders[-1]]
        feed |= {f"{name}.lengths": lengths for name in ragged}
    if not feed:
        feed, expected = _lookups(expected)
    return _stream(feed, expected, about.get("note", "")), about["framework"]


def _lookups(tensors: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return what looking up every key of a checkpoint's tables is fed, and gives.

    Of a table `NAME` the golden file has the values, the `keys`, and the row of each key.
    """
    names = [name for name in tensors if {f"{name}.keys", f"{name}.rows"} <= set(tensors)]
    return (
        {f"{name}.ids": tensors[f"{name}.keys"] for name in names},
        {name: tensors[name][tensors[f"{name}.rows"]] for name in names},
    )


def _stream(
    feed: dict[str, Array], expected: dict[str, Array], note: str
) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    """Return the calls that the golden file of a stream stands for: earlier pieces, then the last."""
    said = re.search(r"feed (\w+) in (\d+) chunks of (\d+), then (\w+)", note)
    if said is None:
        return [(feed, expected)]
    before, count, _, name = said.groups()
    shape = feed[name].shape
    pieces = feed[before].reshape(int(count), *shape)
    return [*(({name: piece}, {}) for piece in pieces), ({name: feed[name]}, expected)]


def judge(path: Path, model: GoldenModel, tolerance: Tolerance) -> str:
    """Return `right`, or how the ONNX file `path` fails: `wrong: …`, or that it does not run."""
    import onnxruntime

    from deploykit.parity import compare

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        if model.later:
            return _judge_sequence(session, model, tolerance)
        inputs = {value.name: tuple(value.shape) for value in session.get_inputs()}
        feed = paired(model.feed, inputs)
        for value in session.get_inputs():
            # what was fed as a float to a lookup is an index
            if value.name in feed and value.type in ("tensor(int32)", "tensor(int64)"):
                feed[value.name] = feed[value.name].astype(value.type[7:-1])
        if missing := [name for name in inputs if name not in feed]:
            return f"wrong: it wants inputs {', '.join(missing)} beyond {', '.join(model.feed)}"
        names = [value.name for value in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:  # onnxruntime's classes have no common base but Exception
        return f"does not run: {' '.join(str(error).split())[:200]}"
    wanted = paired(model.expected, {name: array.shape for name, array in outputs.items()})
    if len(wanted) < len(model.expected):
        return f"wrong: outputs {', '.join(names)}, not {', '.join(model.expected)}"
    found = {name: outputs[name] for name in wanted}
    bad = [one for one in compare(wanted, found, tolerance) if not one.ok]
    return f"wrong: {bad[0].output}: {bad[0].reason}" if bad else "right"


def _judge_sequence(session: Any, model: GoldenModel, tolerance: Tolerance) -> str:
    """Judge calls one after the other: state begins as zeros, and what came out goes in again."""
    import numpy as np

    from deploykit.parity import compare

    shapes = {value.name: tuple(value.shape) for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    state = {name: np.zeros(shapes[name], np.float32) for name in shapes if f"{name}_next" in names}
    if not state:
        return "wrong: it keeps no state from one call to the next"
    for number, (given, expected) in enumerate(((model.feed, model.expected), *model.later)):
        own = {name: shape for name, shape in shapes.items() if name not in state}
        values = session.run(names, {**paired(given, own), **state})
        outputs = dict(zip(names, values, strict=True))
        state = {name: outputs[f"{name}_next"] for name in state}
        wanted = paired(expected, {name: array.shape for name, array in outputs.items()})
        if len(wanted) < len(expected):
            return f"wrong: outputs {', '.join(names)}, not {', '.join(expected)}"
        for one in compare(wanted, {name: outputs[name] for name in wanted}, tolerance):
            if not one.ok:
                return f"wrong: {one.output} of call {number + 1}: {one.reason}"
    return "right"


def paired(tensors: Mapping[str, Array], shapes: Mapping[str, tuple[Any, ...]]) -> dict[str, Array]:
    """Give `tensors` the names in `shapes`: equal but for `:0` and odd signs, else the only one of its shape.

    What is left over on both sides pairs up where it is one of each.
    """
    found: dict[str, Array] = {}
    left = dict(tensors)
    for name in shapes:
        key = next((one for one in left if _plain(one) == _plain(name)), None)
        if key is not None:
            found[name] = left.pop(key)
    for name, shape in shapes.items():
        fitting = [key for key, array in left.items() if _fits(array.shape, shape)]
        if name not in found and len(fitting) == 1:
            found[name] = left.pop(fitting[0])
    return found


def _plain(name: str) -> str:
    return _UNSAFE.sub("_", name.removesuffix(":0")).strip("_").lower()


def _fits(found: tuple[int, ...], shape: tuple[Any, ...]) -> bool:
    return len(found) == len(shape) and all(
        not isinstance(size, int) or size in (n, -1) for n, size in zip(found, shape, strict=True)
    )
