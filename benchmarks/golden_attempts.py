"""What a user would type to convert a real model: the bare command, then what a refusal asks for.

Some models want to be told something that is in no file: which code their weights belong to, which
backend a Keras 1 file was made with, that a recommender's vectors come in pooled. It stands here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.golden_models import GoldenModel
from deploykit.parity import Tolerance

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = Tolerance(atol=1e-4, rtol=1e-3, steps=1)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One command: `--set`s, `--input`s, and whether the golden inputs are the `--sample`."""

    settings: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    sampled: bool = False


_CODE = ROOT / "tests" / "fixtures"
KNOWN = {
    "pytorch/ultraface_rfb320": Attempt(settings={"module": f"{_CODE}/ultraface.py:rfb"}),
    "pytorch/ultraface_slim320": Attempt(settings={"module": f"{_CODE}/ultraface.py:slim"}),
    "torchscript/silero_vad_mini_v2": Attempt(inputs=("x:float32[1,4000]",)),
    "torchscript/silero_vad_v5": Attempt(
        inputs=("x:float32[1,512]",), settings={"constants": '{"sr": 16000}', "outputs": "prob"}
    ),
    "xdl/example_din": Attempt(settings={"sparse": "pooled"}),
    "xdl/example_tdm_dnn": Attempt(settings={"sparse": "pooled"}),
}
"""What is in no file of the model."""

NOISY = {"xdl/example_tdm_dnn": 2e-2}
"""Models whose golden outputs are themselves off by as much of the largest value: in float32 this one
subtracts a mean of 474,530."""


def attempts(model: GoldenModel) -> Iterator[Attempt]:
    """Yield what a user would try in turn, until something is no refusal."""
    known = KNOWN.get(model.name)
    if known is not None:
        yield known
        return
    backend = {"backend": model.keras_backend} if model.keras_backend else {}
    shapes = tuple(
        f"{name}:{array.dtype}[{','.join(map(str, array.shape))}]"
        for name, array in model.feed.items()
    )
    plain = Attempt()
    tried = [plain]
    if backend:
        tried.append(Attempt(settings=backend))
    tried += [
        Attempt(sampled=True),
        Attempt(settings=backend, inputs=shapes),
        Attempt(settings=backend, inputs=shapes, sampled=True),
    ]
    yield from tried


def naming_outputs(model: GoldenModel, attempt: Attempt) -> Attempt | None:
    """Return `attempt` with the golden outputs named, for graphs that do not say what theirs are."""
    if model.group not in ("tf_frozen", "tf_checkpoint"):
        return None
    outputs = {"outputs": ",".join(model.expected)}
    return replace(attempt, settings={**attempt.settings, **outputs})


def tolerance(model: GoldenModel) -> Tolerance:
    """Return how far an ONNX file may be from the golden outputs.

    Integers may differ by as many steps as the framework's own kernels do among themselves.
    """
    about = json.loads((model.folder / "golden.json").read_text())
    spread = about.get("spread_of_the_frameworks_own_kernels", {})
    values = [max(own) for own in spread.values() if isinstance(own, list) and own]
    steps = max([TOLERANCE.steps, *(int(value) for value in values)])
    return replace(TOLERANCE, steps=steps, atol=NOISY.get(model.name, TOLERANCE.atol))


def location(model: GoldenModel) -> Path:
    """Return the folder, or the file in it where others lie beside that are no models."""
    files = [path for path in model.folder.iterdir() if path.suffix in (".h5", ".hdf5")]
    if model.group == "keras_h5" and len(files) > 1:
        return next(path for path in files if "inputs_and_outputs" not in path.name)
    return model.folder
