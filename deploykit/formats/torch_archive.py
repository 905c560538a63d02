"""PyTorch's zip archives: state_dict, TorchScript, lite interpreter and ExportedProgram."""

from __future__ import annotations

import re

from deploykit.errors import SourceError
from deploykit.formats.content import Content, damaged
from deploykit.formats.exported_program import read_program
from deploykit.formats.pickle_scan import Call, Global, Mapping, scan, walk
from deploykit.formats.reading import UNKNOWN_DTYPE, FormatError, Reading, counted
from deploykit.formats.torch_pickle import Tensor, parameter_count, state_dict, tensors
from deploykit.formats.zip_archive import Archive
from deploykit.protocol import Signature, TensorSpec

KIND = "PyTorch archive"
SCALARS = {"int": "int64", "float": "float32", "bool": "bool"}
CALL = re.compile(r"\b(?:torch|ops\.\w+)\.(\w+)\(")
NOT_OPERATORS = re.compile(r"__\w+__|format|len|append|RaiseException|annotate|device|dtype|warn")


def format_of(archive: Archive) -> str | None:
    """Return the format by the archive's members, None where PyTorch did not write it."""
    if "archive_format" in archive or "serialized_exported_program.json" in archive:
        return "pytorch/exported_program"
    if archive.under("models/", ".json") and archive.under("data/"):
        return "pytorch/exported_program"
    if "data.pkl" not in archive:
        return None
    if "bytecode.pkl" in archive:
        return "pytorch/lite"
    if "constants.pkl" in archive or archive.under("code/"):
        return "pytorch/torchscript"
    return "pytorch/state_dict"


def read(content: Content) -> Reading:
    """Read an archive that PyTorch wrote. Raises SourceError where it is none, or damaged."""
    if not content.starts_with(b"PK\x03\x04"):
        # its schema is the interpreter's own: only PyTorch reads more of it
        return Reading(
            format="pytorch/lite",
            location=content.path,
            files=(content.path,),
            details={"container": "FlatBuffer of the lite interpreter's bytecode"},
        )
    with Archive(content) as archive:
        form = format_of(archive)
        if form is None:
            raise damaged(content.path, KIND, "it has no `data.pkl`, so PyTorch did not write it")
        if form == "pytorch/exported_program":
            return read_program(content, archive)
        try:
            pickle = scan(archive.read("data.pkl"))
            if form == "pytorch/state_dict":
                return state_dict(content, pickle)
            return _torchscript(content, archive, form, pickle.value)
        except FormatError as error:
            raise damaged(content.path, KIND, error) from error


def _torchscript(content: Content, archive: Archive, form: str, module: object) -> Reading:
    if not isinstance(module, Call) or not isinstance(module.function, Global):
        raise FormatError("it holds no module")
    code = {name: archive.read(name) for name in archive.under("code/", ".py")}
    if form == "pytorch/torchscript" and not code:
        raise SourceError(f"`{content.path}` is a TorchScript archive without code")
    name = module.function.name
    forward = _forward(code, name)
    traced = _traced_inputs(archive)
    details = {"module": name.removeprefix("__torch__.")}
    if forward is not None:
        details["forward"] = f"({forward[0]}) -> {forward[1]}"
        if not traced:
            details["shapes"] = "not in the file: give them with --input"
    if "version" in archive:
        details["archive version"] = archive.read("version")[:16].decode("ascii", "replace").strip()
    return Reading(
        format=form,
        location=content.path,
        files=(content.path,),
        signature=None if forward is None else _signature(*forward, traced),
        operators=counted(
            operator
            for source in code.values()
            for operator in CALL.findall(source.decode("utf-8", "replace"))
            if not NOT_OPERATORS.fullmatch(operator)
        ),
        parameters=parameter_count(tensors(module)),
        details=details,
    )


def _forward(code: dict[str, bytes], name: str) -> tuple[str, str] | None:
    """Return arguments (without self) and result of the forward of class `name`, None without."""
    folder, _, short = name.rpartition(".")
    source = code.get(f"code/{folder.replace('.', '/')}.py", b"").decode("utf-8", "replace")
    start = re.search(rf"^class {re.escape(short)}\(", source, re.MULTILINE)
    if start is None:
        return None
    body = source[start.end() :].split("\nclass ", 1)[0]
    at = body.find("  def forward(")
    if at < 0:
        return None
    head = body[at : body.find(":\n", at)]
    arguments, _, result = head.partition(") -> ")
    words = " ".join(arguments.split("forward(", 1)[1].split())
    return words.partition(",")[2].strip(), " ".join(result.split())


def _traced_inputs(archive: Archive) -> list[Tensor]:
    """Return the tensors that forward was traced with; tracing keeps them, scripting has none."""
    if "traced_inputs.pkl" not in archive:
        return []
    value = scan(archive.read("traced_inputs.pkl")).value
    for item in walk(value):
        if isinstance(item, Mapping):
            return [one for key, part in item.pairs if key == "forward" for one in tensors(part)]
    return []


def _signature(arguments: str, result: str, traced: list[Tensor]) -> Signature:
    inputs = []
    known = iter(traced)
    for argument in _split(arguments):
        name, _, kind = argument.partition(":")
        kind = kind.split("=", 1)[0].strip()
        tensor = next(known, None) if kind == "Tensor" else None
        if tensor is not None:
            inputs.append(TensorSpec(name=name.strip(), dtype=tensor.dtype, shape=tensor.shape))
        else:
            shape = () if kind in SCALARS else None
            dtype = SCALARS.get(kind, UNKNOWN_DTYPE)
            inputs.append(TensorSpec(name=name.strip(), dtype=dtype, shape=shape))
    inner = re.fullmatch(r"Tuple\[(.*)\]", result)
    count = len(_split(inner[1])) if inner else 1
    names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    return Signature(
        inputs=tuple(inputs),
        outputs=tuple(TensorSpec(name=name, dtype=UNKNOWN_DTYPE, shape=None) for name in names),
    )


def _split(text: str) -> list[str]:
    """Return the parts between those commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "[(") - (char in "])")
        if char == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]
