"""One loaded PyTorch model, whatever it was on disk: how to call it, and its tensors by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploykit.errors import UnsupportedError, UsageError
from deploykit.protocol import Dimension, Signature, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Input:
    """One tensor among the arguments.

    `leaf` is its place among the flattened arguments. `axes` names the dynamic axes; `marks` holds
    what the user's own `dynamic_shapes` says of them (a `torch.export.Dim`).
    """

    leaf: int
    name: str
    axes: dict[int, str] = field(default_factory=dict)
    marks: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A model and example arguments.

    `kind` is `module`, `exported` or `script`. `model` is the nn.Module, ExportedProgram or
    ScriptModule; `function` takes the arguments and returns the outputs in their own structure.
    `make_model` makes the module for torch.export where it is another one than `model`. `legacy`
    says whether TorchScript's own exporter may be used.
    `leaves` and `structure` are the flattened `(args, kwargs)` of torch's pytree. `outputs` are
    those of the example arguments, where it was run on them. `repairs` says what was mended.
    """

    kind: str
    model: Any
    function: Callable[..., Any]
    leaves: tuple[Any, ...]
    structure: Any
    argument_names: tuple[str, ...]
    inputs: tuple[Input, ...]
    output_names: tuple[str, ...] = ()
    make_model: Callable[[], Any] | None = None
    legacy: bool = True
    outputs: tuple[tuple[str, Any], ...] = ()
    repairs: tuple[str, ...] = ()

    def example_outputs(self) -> list[tuple[str, Any]]:
        """Return the named outputs of the example arguments."""
        return list(self.outputs) or self.call(self.leaves)

    def arguments(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return `(args, kwargs)` with `leaves` in place of the examples."""
        from torch.utils import _pytree

        args, kwargs = _pytree.tree_unflatten(list(leaves), self.structure)
        return tuple(args), dict(kwargs)

    def call(self, leaves: Sequence[Any]) -> list[tuple[str, Any]]:
        """Run the model and return its output tensors with their names, in order."""
        import torch

        args, kwargs = self.arguments(leaves)
        try:
            with torch.no_grad():
                outputs = self.function(*args, **kwargs)
        except RuntimeError as error:
            if self.kind != "script":
                raise
            raise UnsupportedError(
                f"the TorchScript fails in torch {torch.__version__}: {last_line(error)}",
                hint="check dtypes and shapes of --input; a file of an older torch may need that torch",
            ) from error
        return self.named_outputs(outputs)

    def named_outputs(self, outputs: Any) -> list[tuple[str, Any]]:
        """Flatten `outputs`, naming each tensor after its key, field or place.

        Raises UnsupportedError for outputs that are no tensors, UsageError where the setting
        `outputs` gives another number of names.
        """
        named = flat_outputs(outputs, [item.name for item in self.inputs])
        names = [name for name, _ in named]
        if self.output_names:
            if len(self.output_names) != len(named):
                raise UsageError(
                    f"the setting `outputs` names {len(self.output_names)} outputs, "
                    f"the model has {len(named)}: {', '.join(names)}"
                )
            names = list(self.output_names)
        return [(name, leaf) for name, (_, leaf) in zip(names, named, strict=True)]

    def signature(self) -> Signature:
        """Return the tensors of the model as it stands; outputs come from one run on the examples."""
        outputs = self.example_outputs()
        return Signature(
            inputs=tuple(
                TensorSpec(
                    name=item.name,
                    dtype=dtype_name(self.leaves[item.leaf]),
                    shape=self.shape(item),
                )
                for item in self.inputs
            ),
            outputs=tuple(
                TensorSpec(name=name, dtype=dtype_name(leaf), shape=self._output_shape(leaf))
                for name, leaf in outputs
            ),
        )

    def shape(self, item: Input) -> tuple[Dimension, ...]:
        """Return the sizes of an input, dynamic axes by name."""
        sizes = self.leaves[item.leaf].shape
        shape: tuple[Dimension, ...] = tuple(
            item.axes.get(axis, int(size)) for axis, size in enumerate(sizes)
        )
        return shape

    def _output_shape(self, tensor: Any) -> tuple[Dimension, ...] | None:
        # one run shows sizes, not which of them depend on a dynamic axis: only the rank is certain
        if any(item.axes for item in self.inputs):
            rank: int = tensor.ndim
            return (None,) * rank
        sizes: tuple[int, ...] = tuple(tensor.shape)
        return sizes


def flat_outputs(outputs: Any, taken: Sequence[str]) -> list[tuple[str, Any]]:
    """Flatten `outputs`, naming each tensor after its key, field or place, other than those `taken`.

    Raises UnsupportedError for outputs that are no tensors.
    """
    import torch
    from torch.utils import _pytree

    named: list[tuple[str, Any]] = []
    for path, leaf in _pytree.tree_flatten_with_path(as_tree(outputs))[0]:
        if leaf is None:
            continue
        if not isinstance(leaf, torch.Tensor):
            raise UnsupportedError(
                f"the model returns a {type(leaf).__name__} besides tensors",
                hint="wrap the model so that it returns tensors only",
            )
        named.append((_joined("output" if not path or _is_place(path[0]) else "", path), leaf))
    return [(f"{name}_output" if name in taken else name, leaf) for name, leaf in named]


def as_tree(value: Any) -> Any:
    """Return dataclasses and other mappings (a ModelOutput) in `value` as dicts; torch's pytree knows these."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return (
            type(value)(as_tree(item) for item in value) if type(value) in (list, tuple) else value
        )
    return value


def dtype_name(tensor: Any) -> str:
    """Return numpy's name for the dtype of a torch tensor."""
    return str(tensor.dtype).removeprefix("torch.")


def leaf_names(argument_names: Sequence[str], args: Any, kwargs: Any) -> list[str]:
    """Return a name for each leaf of `(args, kwargs)`: `mask`, or `states_0` inside a list `states`."""
    from torch.utils import _pytree

    names = []
    for path, _ in _pytree.tree_flatten_with_path((args, kwargs))[0]:
        if path[0].idx == 1:
            first = str(path[1].key)
        elif path[1].idx < len(argument_names):
            first = argument_names[path[1].idx]
        else:  # a value of *args, after the named ones
            first = f"{argument_names[-1] if argument_names else 'input'}_{path[1].idx}"
        names.append(_joined(first, path[2:]))
    return names


def _joined(first: str, path: Sequence[Any]) -> str:
    parts = [_key(entry) for entry in path]
    return "_".join([first, *parts] if first else parts) or "output"


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _is_place(entry: Any) -> bool:
    return _key(entry).isdigit()


def first_line(error: BaseException) -> str:
    """Return the first line of what `error` says, fit for one line of a message."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


def last_line(error: BaseException) -> str:
    """Return the last line of what `error` says: TorchScript's interpreter puts its traceback first."""
    return next(
        (line.strip() for line in reversed(str(error).splitlines()) if line.strip()),
        type(error).__name__,
    )
