"""Models of scikit-learn, XGBoost and LightGBM: pickles (joblib too), skops archives, boosters.

Pickles are only looked at: the names of the classes in them stand there as text.
"""

from __future__ import annotations

import bz2
import json
import lzma
import re
import zlib
from typing import Any

from deploykit.errors import SourceError
from deploykit.formats import json_document
from deploykit.formats.content import Content, damaged, shown
from deploykit.formats.reading import Reading, counted, listed
from deploykit.formats.zip_archive import Archive
from deploykit.protocol import Signature, TensorSpec

HEAD = 256 << 10
LIBRARIES = rb"(?:sklearn|xgboost|lightgbm|imblearn)"
# a module as protocols 4 and 5 write it (a short text), and 2 and 3 (an instruction of its own)
_MODULE = re.compile(rb"(?:\x8c[\x06-\xff]|c)(" + LIBRARIES + rb"(?:\.\w+)*)[\x94\n\x8c]")
_UBJ = re.compile(rb"\{(?:[iU]\x07|I\x00\x07|l\x00{3}\x07|L\x00{7}\x07)learner")
_XGBOOST = re.compile(rb'\s*\{\s*"learner"\s*:\s*\{')


def recognises_pickle(content: Content) -> bool:
    """Whether the file is a pickle, compressed or not, of what these libraries define."""
    head = _unpacked(content)
    is_pickle = len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5
    return is_pickle and _MODULE.search(head) is not None


def _unpacked(content: Content) -> bytes:
    """Return the beginning of the file, decompressed where joblib would do that; empty if damaged."""
    head = bytes(content.view[:HEAD])
    try:
        if head[:1] == b"\x78":
            return zlib.decompressobj().decompress(head, HEAD)
        if head[:2] == b"\x1f\x8b":
            return zlib.decompressobj(31).decompress(head, HEAD)
        if head[:3] == b"BZh":
            return bz2.BZ2Decompressor().decompress(head, HEAD)
        if head[:6] == b"\xfd7zXZ\0":
            return lzma.LZMADecompressor(memlimit=64 << 20).decompress(head, HEAD)
    except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError):
        return b""
    return head


def read_pickle(content: Content) -> Reading:
    """Name what a pickle holds. Raises SourceError where it is no pickle of these libraries."""
    head = _unpacked(content)
    modules = [one.decode("ascii", "replace") for one in _MODULE.findall(head)]
    if not modules:
        raise damaged(content.path, "scikit-learn pickle", "it names no class of these libraries")
    return Reading(
        format="scikit-learn/pickle",
        location=content.path,
        files=(content.path,),
        details={
            "modules": shown(listed(list(counted(modules)), 6)),
            "code": "loading a pickle can run any code: converting it needs --trust",
        },
    )


def recognises_skops(archive: Archive) -> bool:
    """Whether a zip archive is one of skops."""
    return "schema.json" in archive and b'"_skops_version"' in archive.read("schema.json")


def read_skops(content: Content) -> Reading:
    """Read the types that a skops archive holds. Raises SourceError where it is damaged."""
    with Archive(content) as archive:
        if "schema.json" not in archive:
            raise damaged(content.path, "skops archive", "it has no schema.json")
        try:
            schema = json.loads(archive.read("schema.json"))
        except (ValueError, RecursionError) as error:
            raise damaged(content.path, "skops archive", error) from error
    if not isinstance(schema, dict):
        raise damaged(content.path, "skops archive", "its schema is no object")
    types = counted(_types(schema))
    return Reading(
        format="scikit-learn/skops",
        location=content.path,
        files=(content.path,),
        details={
            "model": shown(f"{schema.get('__module__', '')}.{schema.get('__class__', '')}"),
            "types": shown(listed([one for one in types if one.startswith("sklearn")], 8)),
            "saved by": f"skops {shown(str(schema.get('_skops_version', 'unknown')), 40)}",
        },
    )


def _types(value: Any) -> list[str]:
    found: list[str] = []
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            if "__class__" in item:
                found.append(f"{item.get('__module__', '')}.{item['__class__']}")
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return found


def recognises_xgboost(content: Content) -> bool:
    """Whether the file is an XGBoost model in JSON or UBJSON."""
    head = bytes(content.view[:256])
    return _UBJ.match(head) is not None or _XGBOOST.match(head) is not None


def read_xgboost(content: Content) -> Reading:
    """Read what an XGBoost model says of itself. Raises SourceError where it is damaged."""
    details = {"encoding": "UBJSON"}
    signature = None
    if content.view[1] in b'" \t\r\n':
        learner = json_document.parse(content, "XGBoost model").get("learner")
        try:
            parameters = learner["learner_model_param"]  # type: ignore[index]
            features = int(parameters["num_feature"])
            objective = learner["objective"]["name"]  # type: ignore[index]
            trees = len(_trees(learner["gradient_booster"]))  # type: ignore[index]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(
                content.path, "XGBoost model", f"{type(error).__name__} {error}"
            ) from error
        details = {"objective": shown(str(objective)), "trees": str(trees), "encoding": "JSON"}
        signature = _matrix(features)
    return Reading(
        format="xgboost/model",
        location=content.path,
        files=(content.path,),
        signature=signature,
        details=details,
    )


def _trees(booster: Any) -> Any:
    return booster.get("gbtree", booster)["model"].get("trees", ())


def recognises_lightgbm(content: Content) -> bool:
    """Whether the file is a LightGBM model in its text form."""
    return content.starts_with(b"tree\n", b"tree\r\n") and b"\nversion=" in bytes(
        content.view[:256]
    )


def read_lightgbm(content: Content) -> Reading:
    """Read the head of a LightGBM model. Raises SourceError where it is cut off or damaged."""
    head = bytes(content.view[:HEAD]).decode("utf-8", "replace").split("\n\n", 1)[0]
    fields = dict(line.rstrip("\r").split("=", 1) for line in head.splitlines() if "=" in line)
    # after the trees come importances and the parameters of the training
    if b"\nend of trees" not in content.document():
        raise damaged(content.path, "LightGBM model", "the line `end of trees` is missing")
    try:
        features = int(fields["max_feature_idx"]) + 1
    except (KeyError, ValueError) as error:
        raise damaged(content.path, "LightGBM model", "it does not say max_feature_idx") from error
    if not 0 < features < 1 << 31:
        raise SourceError(f"`{content.path}` says that it takes {features} features")
    return Reading(
        format="lightgbm/model",
        location=content.path,
        files=(content.path,),
        signature=_matrix(features),
        details={
            "objective": shown(fields.get("objective", "not said")),
            "trees": str(len(fields.get("tree_sizes", "").split())),
            "version": shown(fields.get("version", "not said"), 40),
        },
    )


def _matrix(features: int) -> Signature:
    spec = TensorSpec(name="X", dtype="float32", shape=("batch", features))
    return Signature(inputs=(spec,), outputs=())
