"""CNTK 2.7 itself, where it is at hand: its C API, to hold our files and operators against.

    CNTK_LIBRARY=.../cntk/libs/libCntk.Core-2.7.so pytest tests/converters -k cntk

The library is in the wheel `cntk==2.7` for Python 3.6, which nothing here runs; it wants
`libmpi.so.12` to be found, of which no function is called on one machine.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np

LIBRARY = os.environ.get("CNTK_LIBRARY", "")


class Status(ctypes.Structure):
    _fields_ = (("value", ctypes.c_int32), ("description", ctypes.c_char * (4 * 4096)))


class Shape(ctypes.Structure):
    _fields_ = (("sizes", ctypes.POINTER(ctypes.c_uint32)), ("rank", ctypes.c_uint32))


class Variable(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("shape", Shape))


class Value(ctypes.Structure):
    _fields_ = (("shape", Shape), ("data", ctypes.POINTER(ctypes.c_float)))


def _sizes(shape: Any) -> list[int]:
    return [shape.sizes[at] for at in range(shape.rank)]


class Model:
    """A model file loaded by CNTK on the CPU. Raises RuntimeError with CNTK's own words."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(LIBRARY, mode=os.RTLD_LAZY)
        self._handle = ctypes.c_void_p()
        cpu = (ctypes.c_uint32 * 2)(0, 0)
        name = ctypes.c_char_p(os.fsencode(path))
        self._call("CNTK_LoadModel", name, ctypes.byref(cpu), ctypes.byref(self._handle))
        self._inputs = self._variables("CNTK_GetModelArgumentsInfo")
        self._outputs = self._variables("CNTK_GetModelOutputsInfo")

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name)
        function.restype = Status
        status = function(*arguments)
        if status.value:
            raise RuntimeError(status.description.decode("utf-8", "replace")[:400])

    def _variables(self, name: str) -> tuple[Any, int]:
        found, count = ctypes.POINTER(Variable)(), ctypes.c_uint32()
        self._call(name, self._handle, ctypes.byref(found), ctypes.byref(count))
        return found, count.value

    def run(self, feed: dict[str, Any]) -> list[Any]:
        """Return each output, flat, of one sequence or one sample fed by name."""
        inputs, count = self._inputs
        values, kept = (Value * count)(), []
        for at in range(count):
            data = np.ascontiguousarray(feed[inputs[at].name.decode()], np.float32).reshape(-1)
            own = _sizes(inputs[at].shape)
            sizes = (ctypes.c_uint32 * (len(own) + 1))(*own, data.size // int(np.prod(own)))
            kept.append((data, sizes))
            values[at].shape.sizes = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_uint32))
            values[at].shape.rank = len(sizes)
            values[at].data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        outputs, made = self._outputs
        found = ctypes.POINTER(Value)()
        fresh = (ctypes.c_bool * count)(*[True] * count)
        arguments = (inputs, values, fresh, ctypes.c_uint32(count), outputs, ctypes.c_uint32(made))
        self._call("CNTK_EvaluateSequence", self._handle, *arguments, ctypes.byref(found))
        results = []
        for at in range(made):
            size = int(np.prod(_sizes(found[at].shape)))
            results.append(np.ctypeslib.as_array(found[at].data, (size,)).copy())
        return results
