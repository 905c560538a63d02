"""What several tests of the target web make: a model, an archive, tensors."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from deploykit._plugins.targets.web_page import exchange
from onnx import TensorProto

FLOAT = TensorProto.FLOAT
NUMBERS = sorted(exchange.DTYPES - {"string"})
"""The element types that travel, but for text."""


def weighted(folder: Path, build: Any) -> Path:
    """A model whose weights lie beside it, one of them in a branch."""
    source = np.random.default_rng(8)
    model: onnx.ModelProto = build(
        [("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "b"], ["y"], {})],
        [("x", FLOAT, ["n", 40])],
        [("y", FLOAT, ["n", 50])],
        {
            "w": source.normal(size=(40, 50)).astype(np.float32),
            "b": source.normal(size=50).astype(np.float32),
        },
    )
    path = folder / "weighted.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    return path


def tarball(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path
