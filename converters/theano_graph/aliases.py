"""The name `theano` for pytensor: code written for Theano imports the successor that is installed.

Packages and functions that were renamed or dropped since Theano 1.0 get their old names here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

MOVED = {
    "theano": "pytensor",
    "theano.gof": "pytensor.graph",
    "theano.gof.graph": "pytensor.graph.basic",
    "theano.gof.op": "pytensor.graph.op",
    "theano.scan_module": "pytensor.scan",
    "theano.tensor.nnet.bn": "pytensor.tensor.nnet.batchnorm",
    "theano.scan_module.scan_op": "pytensor.scan.op",
    "theano.sandbox.neighbours": "pytensor.tensor.nnet.neighbours",
    "theano.sandbox.softsign": "pytensor.tensor.nnet.basic",
    "theano.tensor.signal.downsample": "pytensor.tensor.signal.pool",
    "theano.tensor.shared_randomstreams": "pytensor.tensor.random.utils",
    "theano.tensor.elemwise": "pytensor.tensor.elemwise",
    "theano.tensor.opt": "pytensor.tensor.rewriting",
    "theano.compile.function_module": "pytensor.compile.function.types",
}
"""Modules of Theano under another name in pytensor; all others only change their first part."""

TENSOR_NAMES = {"inv": "reciprocal", "abs_": "abs"}
"""Functions of `theano.tensor` that have another name in `pytensor.tensor`."""


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers `import theano...` with the module of pytensor."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: types.ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "theano" and not fullname.startswith("theano."):
            return None
        try:
            found = importlib.util.find_spec(_renamed(fullname))
        except ModuleNotFoundError:
            return None
        if found is None:
            return None
        _as_theano()
        is_package = found.submodule_search_locations is not None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=is_package)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = importlib.import_module(_renamed(spec.name))
        # the import system is about to write the alias over the module's own record of itself
        spec.loader_state = (module.__spec__, module)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        spec = module.__spec__
        if spec is not None and spec.loader is self:
            module.__spec__ = spec.loader_state[0]


def _renamed(name: str) -> str:
    """Return pytensor's name of Theano's module `name`."""
    if name in MOVED:
        return MOVED[name]
    head, _, tail = name.rpartition(".")
    return f"{_renamed(head)}.{tail}"


def _moved_parent(old: str) -> tuple[str, str, str]:
    """Return pytensor's name of the package of Theano's module `old`, a dot, and its own name."""
    head, dot, tail = old.rpartition(".")
    return (_renamed(head) if head else "", dot, tail)


def install() -> None:
    """Make `import theano` and its modules work. Imports pytensor."""
    import pytensor.tensor as tensor
    import pytensor.tensor.nnet as nnet
    from pytensor.sandbox import rng_mrg
    from pytensor.tensor.nnet import batchnorm
    from pytensor.tensor.random.utils import RandomStream
    from pytensor.tensor.signal import pool

    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    # Theano's own package, where a user has it beside the model, would bring a second graph
    sys.meta_path.insert(0, _Finder())
    for old, new in TENSOR_NAMES.items():
        _offer(tensor, old, getattr(tensor.math, new))
    _offer(tensor, "tanh", tensor.math.tanh)
    _offer(tensor, "nnet", nnet)
    for name in ("sigmoid", "softplus"):
        _offer(nnet, name, getattr(tensor.math, name))
    _offer(pool, "max_pool_2d", pool.pool_2d)
    _offer(pool, "max_pool_2d_same_size", getattr(pool, "max_pool_2d_same_size", None))
    from pytensor.tensor.random import utils as random

    _offer(random, "RandomStreams", _random_streams(RandomStream))
    _offer(rng_mrg, "MRG_RandomStreams", rng_mrg.MRG_RandomStream)
    for old, new in MOVED.items():
        parent, _, name = _moved_parent(old)
        if parent:
            # `from theano.tensor.signal import downsample` looks at the module, not for the file
            _offer(importlib.import_module(parent), name, importlib.import_module(new))
    # the attribute `scan` is the function, which hides the module of that name
    scan = importlib.import_module("pytensor.scan")
    _offer(scan, "until", importlib.import_module("pytensor.scan.utils").until)
    for name in ("batch_normalization_test", "batch_normalization_train"):
        _offer(nnet, name, getattr(batchnorm, name))
    cuda = types.ModuleType("theano.sandbox.cuda")
    vars(cuda).update(cuda_available=False, cuda_enabled=False, __path__=[])
    sys.modules["theano.sandbox.cuda"] = cuda
    gpu = types.ModuleType("theano.gpuarray")
    vars(gpu).update(pygpu_activated=False, __path__=[])
    sys.modules["theano.gpuarray"] = gpu


def _as_theano() -> None:
    """Make what pytensor does otherwise under the same name do as Theano did, for code of Theano."""
    import pytensor.tensor as tensor
    from pytensor.tensor import nnet

    if hasattr(nnet, "_of_theano"):
        return
    nnet._of_theano = True
    for name in ("softmax", "logsoftmax"):
        setattr(nnet, name, _of_rows(getattr(nnet, name), tensor))


def _of_rows(function: Any, tensor: Any) -> Any:
    """Return Theano's softmax: of each row of a matrix, and of a vector as a matrix of one row."""

    def of_rows(values: Any) -> Any:
        values = tensor.as_tensor_variable(values)
        if values.ndim > 2:
            raise ValueError(f"Theano's softmax takes a vector or a matrix, not {values.ndim} axes")
        return function(tensor.shape_padleft(values) if values.ndim == 1 else values, axis=-1)

    return of_rows


def _random_streams(kind: Any) -> Any:
    """Return the class with Theano's order of arguments, so that its graphs can be built."""
    from pytensor.tensor.random import basic

    class RandomStreams(kind):  # type: ignore[misc]
        def binomial(self, size: Any = None, n: int = 1, p: float = 0.5, **_: Any) -> Any:
            return self.gen(basic.binomial, n, p, size=size)

        def uniform(self, size: Any = None, low: float = 0.0, high: float = 1.0, **_: Any) -> Any:
            return self.gen(basic.uniform, low, high, size=size)

        def normal(self, size: Any = None, avg: float = 0.0, std: float = 1.0, **_: Any) -> Any:
            return self.gen(basic.normal, avg, std, size=size)

    return RandomStreams


def _offer(module: Any, name: str, value: Any) -> None:
    """Give `module` the attribute unless it has one of that name."""
    if value is not None and name not in vars(module):
        setattr(module, name, value)
