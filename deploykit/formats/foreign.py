"""Formats of which a few fields are looked at: CNTK, Core ML, XDL; and what is no model at all."""

from __future__ import annotations

from pathlib import Path

from deploykit.errors import SourceError
from deploykit.formats.content import Content, damaged
from deploykit.formats.protobuf_wire import beginning, fields, is_name, number, text
from deploykit.formats.reading import FormatError, Reading

CNTK1 = "BCN\0".encode("utf-16-le")
CNTK1_VERSION = "BVersion\0".encode("utf-16-le")
CNTK1_END = "ECN\0".encode("utf-16-le")
CNTK2_LARGE = b"ktnc"
"""Before the length of the message, in files whose arrays lie behind it: those over 2 GB."""
OTHER = (
    (b"GGUF", "a GGUF file of a language model"),
    (b"ftrt", "a TensorRT engine, already compiled"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ\0", "an xz archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it first"),
    (b"\x7fELF", "a program or shared library"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"RIFF", "a sound or video file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page: the download went wrong"),
    (b"<html", "a web page: the download went wrong"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file without a Keras model"),
)


def what_else(content: Content) -> str:
    """Return in words what a file is that no reader recognises; empty where nobody knows."""
    for magic, name in OTHER:
        if content.starts_with(magic):
            return name
    head = bytes(content.view[: 64 << 10])
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    try:
        # a cut at 64 KiB may fall within a character
        words = head.decode("utf-8", "strict" if len(head) < 64 << 10 else "ignore")
    except UnicodeDecodeError:
        return ""
    plain = all(char.isprintable() or char in "\r\n\t\f\x1b" for char in words)
    return "a text file" if plain else ""


def recognises_cntk1(content: Content) -> bool:
    """Whether the file begins as CNTK's own binary format does."""
    return content.starts_with(CNTK1)


def read_cntk1(content: Content) -> Reading:
    """Name a CNTK v1 model. Raises SourceError where its end marker is missing."""
    if content.view[-len(CNTK1_END) :] != CNTK1_END:
        raise damaged(content.path, "CNTK v1 model", "its end marker is missing")
    # files of the first model version have no version section
    told = content.view[len(CNTK1) : len(CNTK1) + len(CNTK1_VERSION)] == CNTK1_VERSION
    version = int.from_bytes(content.view[26:34], "little") if told else 1
    return Reading(
        format="cntk/v1",
        location=content.path,
        files=(content.path,),
        details={"format version": str(version)},
    )


def recognises_cntk2(content: Content) -> bool:
    """Whether the file begins as CNTK v2's Dictionary does: a version, then named values."""
    found = beginning(_cntk2_message(content), 2)
    if not found or len(found) < 2 or found[0][0] != 1 or found[1][0] != 2:
        return False
    entry = found[1][1]
    if not isinstance(found[0][1], int) or isinstance(entry, int):
        return False
    inner = beginning(entry, 2)
    if not inner or len(inner) < 2 or inner[0][0] != 1 or inner[1][0] != 2:
        return False
    value = inner[1][1]
    head = beginning(value, 2) if not isinstance(value, int) else None
    typed = head is not None and len(head) == 2 and [key for key, _ in head] == [1, 2]
    return typed and is_name(inner[0][1]) and all(isinstance(part, int) for _, part in head or ())


def _cntk2_message(content: Content) -> memoryview:
    if not content.starts_with(CNTK2_LARGE):
        return content.view
    return content.view[8 : 8 + int.from_bytes(content.view[4:8], "little")]


def read_cntk2(content: Content) -> Reading:
    """Name a CNTK v2 model. Raises SourceError where it is truncated."""
    version = 0
    try:
        for key, value in fields(_cntk2_message(content)):
            if key == 1:
                version = number(value)
    except FormatError as error:
        raise damaged(content.path, "CNTK v2 model", error) from error
    return Reading(
        format="cntk/v2",
        location=content.path,
        files=(content.path,),
        details={"format version": str(version)},
    )


def recognises_coreml(content: Content) -> bool:
    """Whether the file begins as a Core ML model does: a version, then a description."""
    found = beginning(content.view, 4)
    if not found or len(found) < 2 or found[0][0] != 1 or found[1][0] != 2:
        return False
    description = found[1][1]
    if not isinstance(found[0][1], int) or isinstance(description, int):
        return False
    inner = beginning(description, 1)
    feature = inner[0][1] if inner and inner[0][0] == 1 else 0
    if isinstance(feature, int) or any(2 < key < 10 for key, _ in found):
        return False
    parts = beginning(feature, 1)
    return bool(parts) and (parts or [(0, 0)])[0][0] == 1 and is_name((parts or [(0, 0)])[0][1])


def read_coreml(content: Content) -> Reading:
    """Name a Core ML model. Raises SourceError where it is truncated."""
    version = 0
    try:
        for key, value in fields(content.view):
            if key == 1:
                version = number(value)
    except FormatError as error:
        raise damaged(content.path, "Core ML model", error) from error
    return Reading(
        format="coreml/mlmodel",
        location=content.path,
        files=(content.path,),
        details={"specification": str(version)},
    )


def is_coreml_package(folder: Path) -> bool:
    """Whether the folder is an `.mlpackage`."""
    return (folder / "Manifest.json").is_file() and (folder / "Data" / "com.apple.CoreML").is_dir()


def read_coreml_package(folder: Path) -> Reading:
    """Name a Core ML package. Raises SourceError where its model is missing."""
    data = folder / "Data" / "com.apple.CoreML"
    if not (data / "model.mlmodel").is_file():
        raise SourceError(f"`{folder}` has no model: `{data / 'model.mlmodel'}` is missing")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Reading(format="coreml/mlpackage", location=folder, files=tuple(files))


def recognises_xdl(content: Content) -> bool:
    """Whether the file is the text of an XDL graph: nodes whose names begin with a slash."""
    head = bytes(content.view[:512])
    return head.startswith(b"node {") and b'name: "/' in head


def recognises_xdl_binary(content: Content) -> bool:
    """Whether the file begins as a binary XDL graph does: a node whose name begins with a slash.

    It is like a TensorFlow graph in everything else, and there no name begins so.
    """
    found = beginning(content.view, 1)
    if not found or found[0][0] != 1 or isinstance(found[0][1], int):
        return False
    node = beginning(found[0][1], 2)
    if not node or [key for key, _ in node] != [1, 2]:
        return False
    return is_name(node[0][1]) and is_name(node[1][1]) and text(node[0][1]).startswith("/")


def read_xdl(content: Content) -> Reading:
    """Name an XDL graph and the files of its serving export."""
    path = content.path
    # every file beside it is a table or a setting of the model
    files = sorted(
        one
        for one in path.parent.iterdir()
        if one.is_file() and not one.name.startswith(("golden.", "."))
    )
    return Reading(format="xdl/graph", location=path, files=tuple(files))


def is_xdl_checkpoint(folder: Path) -> bool:
    """Whether the folder is a checkpoint of XDL's parameter servers."""
    return (folder / "checkpoints").is_file() and any(folder.glob("*/__meta__"))


def read_xdl_checkpoint(folder: Path) -> Reading:
    """Name a checkpoint of XDL's parameter servers."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Reading(format="xdl/checkpoint", location=folder, files=tuple(files))
