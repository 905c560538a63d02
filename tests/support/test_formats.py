"""Every format through `convert`: shared models against golden outputs, made ones against their framework.

A model is converted as a user would (`benchmarks/golden_attempts.py`): the bare call, and where that
asks for something (the shape of an input, the backend of a Keras 1 file, inputs that make sense),
once more with it. The tables in the document are written from what happens here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import deploykit as dk
from benchmarks import golden_attempts, golden_models
from benchmarks.golden_models import GoldenModel
from deploykit.errors import DeploykitError, UnsupportedError, UsageError
from deploykit.tensors import write_tensors

from .made import MADE, Made
from .test_support import DOCUMENT, reason

pytestmark = pytest.mark.environment

MODELS = Path(
    os.environ.get("DEPLOYKIT_MODELS", Path(__file__).resolve().parents[3] / "shared" / "models")
)
FOLDERS = sorted(path.parent for path in MODELS.glob("*/*/golden.json"))
BEGIN, END = "<!-- formats -->\n", "<!-- end of formats -->\n"


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


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """What was found of the made models, by format: whether the batch is dynamic."""
    return {}


def converted(model: GoldenModel, attempt: golden_attempts.Attempt, output: Path) -> dk.Conversion:
    """Convert `model` as `attempt` says, proven with the default checks."""
    sample = None
    if attempt.sampled:
        sample = output.with_name("inputs.npz")
        write_tensors(sample, model.feed)
    return dk.convert(
        golden_attempts.location(model),
        output,
        source=dk.SourceOptions.parse(inputs=attempt.inputs, settings=dict(attempt.settings)),
        checks=dk.Checks(sample=sample),
    )


def is_batched(conversion: dk.Conversion) -> bool:
    """Whether the first size of the first input is dynamic."""
    first = conversion.signature.inputs[0].shape
    return bool(first) and not isinstance(first[0] if first else 1, int)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_model_becomes_right_or_is_refused(
    folder: Path, table: dict[str, Row], tmp_path: Path
) -> None:
    model = golden_models.read(folder)
    row = table.setdefault(dk.inspect(golden_attempts.location(model)).format, Row())
    row.tried += 1
    row.recognised += 1
    output = tmp_path / "out.onnx"
    failure: DeploykitError | None = None
    for attempt in golden_attempts.attempts(model):
        try:
            conversion = converted(model, attempt, output)
            break
        except (UsageError, UnsupportedError) as error:
            failure = error
        except DeploykitError as error:
            failure = error
            break
    if not output.is_file():
        row.why.append(f"{model.name}: {reason(str(failure), MODELS)}")
        return
    tolerance = golden_attempts.tolerance(model)
    verdict = golden_models.judge(output, model, tolerance)
    named = golden_attempts.naming_outputs(model, attempt)
    if verdict.startswith("wrong: outputs") and named is not None:
        conversion = converted(model, named, output)
        verdict = golden_models.judge(output, model, tolerance)
    row.converted += 1
    assert verdict == "right"
    row.right += 1
    row.dynamic += is_batched(conversion)


@pytest.mark.parametrize("one", MADE, ids=lambda one: one.format)
def test_a_made_model_gives_what_its_framework_gives(
    one: Made, made: dict[str, str], tmp_path: Path
) -> None:
    location = one.location(tmp_path)
    source = dk.SourceOptions.parse(inputs=one.inputs, settings=dict(one.settings), trust=one.trust)
    found = dk.inspect(location, trust=one.trust, elsewhere="weights" in one.settings)
    assert found.format == one.format
    conversion = dk.convert(location, tmp_path / "out.onnx", source=source)
    assert conversion.verified
    made[one.format] = "yes" if is_batched(conversion) else "no"


def lines(table: dict[str, Row], made: dict[str, str]) -> Iterator[str]:
    yield "| format | models | recognised | converted | parity with golden | dynamic batch |"
    yield "|---|---|---|---|---|---|"
    notes = []
    for name, row in sorted(table.items()):
        cells = [row.recognised, row.converted, row.right, row.dynamic]
        yield f"| `{name}` | {row.tried} | " + " | ".join(str(cell) for cell in cells) + " |"
        notes += row.why
    yield ""
    yield from (f"- {note[:300]}" for note in sorted(notes))
    yield "Formats of which there is no shared model, with one that the framework itself made, held"
    yield "against the framework (`tests/support/made.py`):"
    yield ""
    yield "| format | recognised | converted | parity with its framework | dynamic batch |"
    yield "|---|---|---|---|---|"
    for name, dynamic in sorted(made.items()):
        yield f"| `{name}` | yes | yes | yes | {dynamic} |"


def test_the_document_has_the_table_of_formats(table: dict[str, Row], made: dict[str, str]) -> None:
    whole = sum(row.tried for row in table.values()) == len(FOLDERS) and len(made) == len(MADE)
    if not whole or not FOLDERS:
        pytest.skip("only a part of the models was run")
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    document = before + BEGIN + "\n".join(lines(table, made)) + "\n" + END + after
    if os.environ.get("DEPLOYKIT_WRITE_SUPPORT"):
        DOCUMENT.write_text(document, encoding="utf-8")
    found = DOCUMENT.read_text(encoding="utf-8")
    assert found == document, (
        "docs/support.md is out of date: DEPLOYKIT_WRITE_SUPPORT=1 pytest tests/support"
    )
