"""Every shared model with golden outputs through `convert`: the table of formats in the document.

A model is converted as a user would: the bare call, and where that asks for something (the shape of
an input, the backend of a Keras 1 file, inputs that make sense), once more with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import deploykit as dk
from benchmarks import golden_models
from benchmarks.golden_models import GoldenModel
from deploykit.errors import DeploykitError, UnsupportedError, UsageError
from deploykit.tensors import write_tensors

from .test_support import DOCUMENT, reason

pytestmark = pytest.mark.environment

MODELS = Path(
    os.environ.get("DEPLOYKIT_MODELS", Path(__file__).resolve().parents[3] / "shared" / "models")
)
FOLDERS = sorted(path.parent for path in MODELS.glob("*/*/golden.json"))
BEGIN, END = "<!-- formats -->\n", "<!-- end of formats -->\n"
TOLERANCE = dk.Tolerance(atol=1e-4, rtol=1e-3, steps=1)


@dataclass
class Row:
    """What became of the models of one format."""

    tried: int = 0
    recognised: int = 0
    converted: int = 0
    right: int = 0
    dynamic: int = 0
    why: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def table() -> dict[str, Row]:
    """The rows by format, filled as the models are tried."""
    return {}


def location(model: GoldenModel) -> Path:
    """The folder, or the file in it where others lie beside that are no models."""
    files = [path for path in model.folder.iterdir() if path.suffix == ".h5"]
    if model.group == "keras_h5" and len(files) > 1:
        return next(path for path in files if "inputs_and_outputs" not in path.name)
    return model.folder


def attempts(model: GoldenModel, folder: Path) -> Iterator[tuple[dk.SourceOptions, dk.Checks]]:
    """Yield what a user would try in turn."""
    inputs = tuple(
        f"{name}:{array.dtype}[{','.join(map(str, array.shape))}]"
        for name, array in model.feed.items()
    )
    backend = {"backend": model.keras_backend} if model.keras_backend else {}
    sample = folder / "inputs.npz"
    write_tensors(sample, model.feed)
    plain = dk.Checks(tolerance=TOLERANCE)
    yield dk.SourceOptions(), plain
    if model.group.startswith("keras"):
        yield dk.SourceOptions(settings=backend), plain
    yield dk.SourceOptions(), dk.Checks(tolerance=TOLERANCE, sample=sample)
    yield dk.SourceOptions.parse(inputs=inputs), plain
    yield dk.SourceOptions.parse(inputs=inputs), dk.Checks(tolerance=TOLERANCE, sample=sample)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_model_becomes_right_or_is_refused(
    folder: Path, table: dict[str, Row], tmp_path: Path
) -> None:
    model = golden_models.read(folder)
    inspection = dk.inspect(location(model))
    row = table.setdefault(inspection.format, Row())
    row.tried += 1
    row.recognised += 1
    output = tmp_path / "out.onnx"
    failure: DeploykitError | None = None
    for source, checks in attempts(model, tmp_path):
        try:
            conversion = dk.convert(location(model), output, source=source, checks=checks)
            break
        except (UsageError, UnsupportedError) as error:
            failure = error
        except DeploykitError as error:
            failure = error
            break
    else:
        row.why.append(f"{model.name}: {reason(str(failure), MODELS)}")
        return
    if not output.is_file():
        row.why.append(f"{model.name}: {reason(str(failure), MODELS)}")
        return
    row.converted += 1
    verdict = golden_models.judge(output, model, TOLERANCE)
    if verdict.startswith(("wrong: it wants inputs", "wrong: outputs")):
        # the golden file describes a part of the model, or a sequence of calls of it
        row.why.append(f"{model.name}: not comparable: {reason(verdict, MODELS)}")
        return
    assert verdict == "right"
    row.right += 1
    first = conversion.signature.inputs[0].shape
    row.dynamic += bool(first) and not isinstance(first[0] if first else 1, int)


def lines(table: dict[str, Row]) -> Iterator[str]:
    yield "| format | models | recognised | converted | parity with golden | dynamic batch |"
    yield "|---|---|---|---|---|---|"
    notes = []
    for name, row in sorted(table.items()):
        cells = [row.recognised, row.converted, row.right, row.dynamic]
        yield f"| `{name}` | {row.tried} | " + " | ".join(str(cell) for cell in cells) + " |"
        notes += row.why
    yield ""
    yield from (f"- {note[:300]}" for note in sorted(notes))


def test_the_document_has_the_table_of_formats(table: dict[str, Row]) -> None:
    if sum(row.tried for row in table.values()) < len(FOLDERS) or not FOLDERS:
        pytest.skip("only a part of the models was run")
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = before + BEGIN + "\n".join(lines(table)) + "\n" + END + after
    if os.environ.get("DEPLOYKIT_WRITE_SUPPORT"):
        DOCUMENT.write_text(made, encoding="utf-8")
    found = DOCUMENT.read_text(encoding="utf-8")
    assert (
        found.partition(END)[0].partition(BEGIN)[2].splitlines()[: len(table) + 2]
        == (made.partition(END)[0].partition(BEGIN)[2].splitlines()[: len(table) + 2])
    ), "docs/support.md is out of date: DEPLOYKIT_WRITE_SUPPORT=1 pytest tests/support"
