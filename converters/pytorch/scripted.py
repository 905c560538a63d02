"""A TorchScript module as an nn.Module that torch.export can trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploykit._plugins.converters.pytorch import quantised, recurrent, spectral
from deploykit._plugins.converters.pytorch.interpreter import Interpreter
from deploykit._plugins.converters.pytorch.script_graph import Place, attributes


def traceable(script: Any, fixed: Mapping[Place, Any], slots: Sequence[Place]) -> Any:
    """Return a module whose forward takes the script's arguments and then the value of each of `slots`.

    It returns the script's result, or with `slots` that result and the list of their new values.
    `fixed` are the attributes that keep one value. The weights keep their names.
    """
    import torch

    found = attributes(script)
    parameters = {name for name, _ in script.named_parameters()}

    class Interpreted(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.packed: dict[int, tuple[Any, str]] = {}
            numbers: dict[Place, Any] = {}
            for place, value in found.items():
                if place in slots or place in fixed:
                    continue
                if isinstance(value, torch.ScriptObject):
                    self._unpack(place, value)
                elif isinstance(value, torch.Tensor) and not value.is_quantized:
                    self._keep(place, value, ".".join(filter(None, place)) in parameters)
                    if value.numel() == 1 and not value.is_floating_point():
                        numbers[place] = value.item()
                    elif value.numel() == 1:
                        numbers[place] = float(value)
            self.interpreter = Interpreter(
                script,
                special=self._special(),
                attribute=self._stand_in,
                numbers=numbers,
            )

        def _keep(self, place: Place, value: Any, is_parameter: bool = False) -> None:
            owner: Any = self
            for part in filter(None, place[0].split(".")):
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner._modules[part]
            value = value.detach()
            if is_parameter:
                value = torch.nn.Parameter(value, requires_grad=False)
                owner._parameters[place[1]] = value
            else:
                owner._buffers[place[1]] = value

        def _unpack(self, place: Place, packed: Any) -> None:
            try:
                weight, bias = quantised.unpacked(packed)
            except NotImplementedError:
                return  # it may belong to a branch that is never taken
            self._keep((place[0], f"{place[1]}_weight"), weight)
            if bias is not None:
                self._keep((place[0], f"{place[1]}_bias"), bias)

        def _tensor(self, path: str, name: str) -> Any:
            owner = self.get_submodule(path)
            value = owner._parameters.get(name)
            return owner._buffers.get(name) if value is None else value

        def _stand_in(self, place: Place, value: Any) -> Any:
            if isinstance(value, torch.ScriptObject):
                weight = self._tensor_or_none(place[0], f"{place[1]}_weight")
                return Packed(value, weight, self._tensor_or_none(place[0], f"{place[1]}_bias"))
            if not isinstance(value, torch.Tensor):
                return value
            kept = self._tensor_or_none(*place)
            return value if kept is None else kept

        def _tensor_or_none(self, path: str, name: str) -> Any:
            try:
                return self._tensor(path, name)
            except AttributeError:
                return None

        def _constant(self, name: str, make: Callable[[], Any]) -> Any:
            if name not in self._buffers:
                self.register_buffer(name, make())
            return self._buffers[name]

        def _special(self) -> dict[str, Callable[..., Any]]:
            return {
                **quantised.special(lambda packed: (packed.weight, packed.bias)),
                **recurrent.special(),
                "aten::stft": spectral.convolved(self._constant),
            }

        def forward(self, *args: Any) -> Any:
            count = len(args) - len(slots)
            given = dict(zip(slots, args[count:], strict=True))
            # in place operators of the script must not reach the caller's tensors
            state = {**fixed, **{place: value.clone() for place, value in given.items()}}
            result = self.interpreter(*args[:count], state=state)
            if not slots:
                return result
            return result, [self.interpreter.written[place] for place in slots]

    return Interpreted().eval()


class Packed:
    """The packed parameters of a quantised layer, its weights as float tensors."""

    def __init__(self, packed: Any, weight: Any, bias: Any) -> None:
        self._packed = packed
        self.weight = weight
        self.bias = bias

    def __getattr__(self, name: str) -> Any:
        return getattr(self._packed, name)
