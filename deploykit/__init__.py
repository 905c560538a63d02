"""deploykit: a model goes in, a bundle that has proved itself comes out, and a report says which
hardware to buy.

    import deploykit as dk

    dk.inspect("model.pt2")                                   # what is it? no framework imported
    dk.convert("model.pt2", "model.onnx")                     # verified against PyTorch itself
    result = dk.compile("model.pt2", ["onnxruntime", "openvino"], "bundles")
    with dk.load(result.bundles[0].folder) as session:        # runs inference
        outputs = session.run({"images": images})
    dk.verify(result.bundles[0].folder)                       # proves the bundle again, here
    report = dk.profile("model.pt2", targets=["native", "onnxruntime", "openvino"])

Importing this package costs nothing: each name is loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.bundle import Manifest as Manifest
    from deploykit.compilation import Compilation as Compilation
    from deploykit.compilation import compile as compile
    from deploykit.conversion import Conversion as Conversion
    from deploykit.conversion import convert as convert
    from deploykit.errors import DeploykitError as DeploykitError
    from deploykit.formats import Inspection as Inspection
    from deploykit.formats import inspect as inspect
    from deploykit.options import Checks as Checks
    from deploykit.options import Conditions as Conditions
    from deploykit.options import SourceOptions as SourceOptions
    from deploykit.parity import Tolerance as Tolerance
    from deploykit.profiling import Load as Load
    from deploykit.profiling import profile as profile
    from deploykit.protocol import Signature as Signature
    from deploykit.protocol import TensorSpec as TensorSpec
    from deploykit.report import Report as Report
    from deploykit.session import LoadedSession as LoadedSession
    from deploykit.session import load as load
    from deploykit.steps import Limits as Limits
    from deploykit.verification import Verification as Verification
    from deploykit.verification import verify as verify

__version__ = "0.1.0"

_HOME_OF = {
    "Checks": "options",
    "Compilation": "compilation",
    "Conditions": "options",
    "Conversion": "conversion",
    "DeploykitError": "errors",
    "Inspection": "formats",
    "Limits": "steps",
    "Load": "profiling",
    "LoadedSession": "session",
    "Manifest": "bundle",
    "Report": "report",
    "Signature": "protocol",
    "SourceOptions": "options",
    "TensorSpec": "protocol",
    "Tolerance": "parity",
    "Verification": "verification",
    "compile": "compilation",
    "convert": "conversion",
    "inspect": "formats",
    "load": "session",
    "profile": "profiling",
    "verify": "verification",
}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"deploykit.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
