"""Keras files read without Keras: HDF5 of Keras 1 and 2, `.keras` archives, JSON with weights apart.

Formats: `keras/engine/topology.py` of Keras 1.2 and 2.0 (`save_weights_to_hdf5_group`), and
`keras/src/saving/saving_lib.py` of Keras 3. Nothing in a file is executed: marshalled code of Lambda
layers stays where it is.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras import hdf5, operation_calls, tensor_arguments
from deploykit._plugins.converters.keras.dialects import modern
from deploykit._plugins.converters.keras.weights import (
    LARGEST_RATIO,
    Groups,
    Paths,
    layer_list,
    snake,
    text_of,
)

from deploykit.errors import SourceError, UnsupportedError
from deploykit.formats.yaml_document import parse_yaml

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LARGEST_CONFIG = 256 << 20

FUNCTIONAL = ("Model", "Functional")

Ref = tuple[str, int, int]
"""The output `tensor` of the call number `node` of the layer `name`."""


class Weights(dict[str, "Array"]):
    """Weights by their short names; one that is missing says whose it is."""

    def __init__(self, layer: str, values: Mapping[str, Array]) -> None:
        super().__init__(values)
        self._layer = layer

    def __missing__(self, name: str) -> Array:
        raise SourceError(
            f"the file has no `{name}` for the layer `{self._layer}`",
            hint="it is damaged, or weights and architecture belong to different models",
        )


@dataclass(frozen=True)
class Calls:
    """The inputs of each call of a layer, and the masks that calls are given by name."""

    inputs: tuple[tuple[Ref, ...], ...] = ()
    masks: tuple[Ref | None, ...] = ()
    arguments: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer in the words of Keras 2: `calls` are the inputs of each of its calls.

    `masks` has the tensor that a call is given as its mask, as Keras 3 writes it. Where `kind` is
    `operation` a function is called, and `config` says which (`operation`) and how (`calls`).
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    calls: tuple[tuple[Ref, ...], ...] = ()
    masks: tuple[Ref | None, ...] = ()
    weights: Mapping[str, Array] = field(default_factory=dict)
    inner: Network | None = None


@dataclass(frozen=True, kw_only=True)
class Network:
    """Layers and what goes in and out; the order of layers is that of the file."""

    name: str
    layers: tuple[Layer, ...]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]


@dataclass(frozen=True, kw_only=True)
class KerasModel:
    """A model file: `backend` is None where a file of Keras 1 does not say it.

    `written` is the version as the file has it, such as `2.2.4-tf`.
    """

    path: Path
    version: int
    written: str
    backend: str | None
    network: Network


def read(location: str, format: str, options: Mapping[str, str]) -> KerasModel:
    """Read the model at `location`.

    Raises SourceError where it is damaged or its weights are missing, UnsupportedError where it is
    of a kind that is not a graph of layers (a subclassed model).
    """
    path = Path(location)
    if format == "keras/v3":
        model = partial(_archive, path)
    elif format in ("keras/json", "keras/yaml"):
        model = partial(_apart, path, format, options)
    else:
        model = partial(_hdf5, path)
    try:
        hdf5.rehearse(model, path)
        return model()
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise SourceError(f"cannot read `{path}`: {error.strerror}") from error
        raise _damaged(path, error) from error
    except (RecursionError, RuntimeError, zipfile.BadZipFile, OverflowError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"`{path}` is a damaged Keras model: {type(error).__name__}: {error}"[:400],
        hint="save it again with `model.save`",
    )


def release(written: str) -> tuple[int, int]:
    """Return the first two numbers of the version `written`, zeros where it has none."""
    numbers = [int(part) for part in re.findall(r"\d+", written)[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (numbers[0] if numbers else 0, 0)


def zeroes_masked(written: str) -> bool | None:
    """Whether a Bidirectional of the version `written` gives zeros in steps that do not count.

    The Keras within TensorFlow and Keras 3 do, the one that stood alone until 2.3.1 does not. Both
    kinds exist of TensorFlow's `2.2.4-tf` (1.12 to 2.1), for which None is returned.
    """
    number = [int(part) for part in re.findall(r"\d+", written)[:2]]
    if written.endswith("-tf") and number == [2, 2]:
        return None
    return written.endswith("-tf") or number[:1] >= [3] or number >= [2, 4]


# ---- the three containers


def _hdf5(path: Path) -> KerasModel:
    with hdf5.opened(path) as file:
        written = file.attrs.get("model_config")
        if written is None:
            raise SourceError(
                f"`{path}` holds weights and no architecture",
                hint="name the architecture's JSON instead, with the weights beside it",
            )
        config = _document(text_of(written))
        group = file.get("model_weights", file)
        version, backend = _said(file.attrs, group.attrs, config)
        return _model(path, config, version, backend, Groups(group))


def _apart(path: Path, format: str, options: Mapping[str, str]) -> KerasModel:
    if path.stat().st_size > LARGEST_CONFIG:
        raise SourceError(f"`{path}` is too large for a Keras configuration")
    if format == "keras/yaml":
        config = parse_yaml(path.read_bytes())
    else:
        config = _document(path.read_text(encoding="utf-8"))
    weights = Path(options["weights"]) if "weights" in options else _weights_beside(path)
    with hdf5.opened(weights) as file:
        group = file.get("model_weights", file)
        version, backend = _said(file.attrs, group.attrs, config)
        if "layer_names" not in group.attrs:
            # Keras 2.13 and later can write the new kind of weights, and still is Keras 2
            own = str(config.get("keras_version") or "3")
            return _model(path, config, own, "tensorflow", Paths(file, config))
        return _model(path, config, version, backend, Groups(group))


def _weights_beside(path: Path) -> Path:
    found = []
    for candidate in sorted([*path.parent.glob("*.h5"), *path.parent.glob("*.hdf5")]):
        content = candidate.read_bytes()[: 1 << 26]
        if b"layer_names" in content and b"model_config" not in content:
            found.append(candidate)
    if len(found) != 1:
        names = ", ".join(f"`{one.name}`" for one in found) or "none"
        raise SourceError(
            f"which weights belong to `{path}` is not clear: {names} beside it",
            hint="name them: `--set weights=FILE.h5`",
        )
    return found[0]


def _archive(path: Path) -> KerasModel:
    with zipfile.ZipFile(path) as archive:
        config = _document(_member(archive, "config.json").decode("utf-8"))
        metadata = _document(_member(archive, "metadata.json").decode("utf-8"))
        content = _member(archive, "model.weights.h5")
    version = str(metadata.get("keras_version", "3"))
    with hdf5.opened(content) as file:
        return _model(path, config, version, "tensorflow", Paths(file, config))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise SourceError(f"`{archive.filename}` has no `{name}`") from None
    if info.file_size > max(LARGEST_CONFIG, LARGEST_RATIO * info.compress_size):
        raise SourceError(f"`{name}` in `{archive.filename}` says it is {info.file_size} bytes")
    return archive.read(info)


def _document(text: str) -> dict[str, Any]:
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("the configuration is no object")
    return document


def _said(
    file: Mapping[str, Any], group: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[str, str | None]:
    """Return the version of Keras and the backend that wrote the file, as far as it says."""
    version = next(
        (
            text_of(one["keras_version"])
            for one in (file, group, config)
            if one.get("keras_version") is not None
        ),
        "1",
    )
    backend = next(
        (
            text_of(one["backend"])
            for one in (file, group, config)
            if one.get("backend") is not None
        ),
        None,
    )
    return version, backend


# ---- the graph


def _model(
    path: Path, config: dict[str, Any], written: str, backend: str | None, weights: Groups
) -> KerasModel:
    version = int(written.split(".")[0])
    if version >= 2 and backend is None:
        backend = "tensorflow"
    network = _network(config, version, weights)
    return KerasModel(path=path, version=version, written=written, backend=backend, network=network)


def _network(config: Mapping[str, Any], version: int, weights: Groups) -> Network:
    inner = config["config"]
    name = str(inner.get("name", "model")) if isinstance(inner, dict) else "model"
    layers = layer_list(config)
    if config["class_name"] == "Sequential":
        return _sequential(name, layers, version, weights)
    made = tuple(
        _operation(layer)
        if operation_calls.is_operation(layer)
        else _layer(layer, version, weights, _calls(layer))
        for layer in layers
    )
    network = Network(
        name=name,
        layers=made,
        inputs=_refs(inner["input_layers"]),
        outputs=_refs(inner["output_layers"]),
    )
    if version < 3:
        return _renumbered(network)
    # Keras 3 does so where it lists the outputs, and nowhere else (`get_tensor` in `functional.py`)
    models = {config_name(layer) for layer in layers if layer["class_name"] in FUNCTIONAL}
    outputs = tuple((name, node - (name in models), at) for name, node, at in network.outputs)
    return replace(network, outputs=outputs)


def _renumbered(network: Network) -> Network:
    """Return `network` with the calls of models within it counted from 0.

    Keras 2 counts them from 1, the making of such a model being number 0 (`kept_nodes` in
    `Network.get_config`), unless it was made without a shape.
    """
    used: dict[str, int] = {}
    masks = [mask for layer in network.layers for mask in layer.masks if mask is not None]
    calls = [ref for layer in network.layers for call in layer.calls for ref in call]
    for name, node, _ in (*calls, *masks, *network.outputs):
        used[name] = max(node, used.get(name, 0))
    late = {
        layer.name
        for layer in network.layers
        if layer.inner is not None and layer.calls and used.get(layer.name) == len(layer.calls)
    }

    def moved(ref: Ref) -> Ref:
        return (ref[0], ref[1] - 1, ref[2]) if ref[0] in late else ref

    if not late:
        return network
    return replace(
        network,
        outputs=tuple(moved(ref) for ref in network.outputs),
        layers=tuple(
            replace(
                layer,
                calls=tuple(tuple(moved(ref) for ref in call) for call in layer.calls),
                masks=tuple(None if mask is None else moved(mask) for mask in layer.masks),
            )
            for layer in network.layers
        ),
    )


def _operation(layer: Mapping[str, Any]) -> Layer:
    name = operation_calls.operation_of(layer, snake(str(layer["class_name"])))
    inputs, calls = operation_calls.calls_of(layer)
    return Layer(
        name=config_name(layer),
        kind="operation",
        config={"operation": name, "calls": calls},
        calls=tuple(inputs),
        masks=(None,) * len(inputs),
    )


def _sequential(name: str, layers: list[dict[str, Any]], version: int, weights: Groups) -> Network:
    made: list[Layer] = []
    previous: Ref | None = None
    for layer in layers:
        if previous is None and layer["class_name"] != "InputLayer":
            if layer["class_name"] == "Merge":
                raise UnsupportedError(
                    "a Sequential model that begins with a Merge layer is not supported",
                    hint="rebuild it with the functional API and save it again",
                )
            first = layer
            while _is_model(first) and layer_list(first):
                first = layer_list(first)[0]
            made.append(_first_input(first, str(config_name(layer)), version))
            previous = (made[0].name, 0, 0)
        calls = Calls() if previous is None else Calls(((previous,),), (None,))
        made.append(_layer(layer, version, weights, calls))
        previous = (made[-1].name, 0, 0)
    if previous is None or not made:
        raise ValueError("a model without layers")
    return Network(
        name=name, layers=tuple(made), inputs=((made[0].name, 0, 0),), outputs=(previous,)
    )


def config_name(layer: Mapping[str, Any]) -> str:
    """Return the name of a layer: beside or within its configuration."""
    config = layer.get("config")
    inner = config.get("name") if isinstance(config, dict) else None
    return str(layer.get("name") or inner or layer["class_name"].lower())


def _first_input(layer: Mapping[str, Any], name: str, version: int) -> Layer:
    config = layer["config"]
    shape = config.get("batch_input_shape") or config.get("batch_shape")
    if shape is None and config.get("input_dim") is not None:
        rest = [config.get("input_length")] if "input_length" in config else []
        shape = [None, *rest, config["input_dim"]]
    if shape is None and isinstance(layer.get("build_config"), dict):
        shape = layer["build_config"].get("input_shape")
    dtype = config.get("input_dtype") or config.get("dtype") or "float32"
    if layer["class_name"] == "Embedding":
        dtype = "int32" if version == 1 else "float32"
    # Keras 1 counts its inputs by the class of the layer behind
    own = f"{layer['class_name'].lower()}_input_1" if version == 1 else f"{name}_input"
    return Layer(
        name=own,
        kind="InputLayer",
        config={
            "batch_input_shape": shape,
            "dtype": dtype if isinstance(dtype, str) else "float32",
        },
    )


def _is_model(layer: Mapping[str, Any]) -> bool:
    return layer["class_name"] in ("Sequential", *FUNCTIONAL)


def _layer(layer: Mapping[str, Any], version: int, weights: Groups, called: Calls) -> Layer:
    calls, masks = called.inputs, called.masks
    name = config_name(layer)
    if _is_model(layer):
        network = _network(layer, version, weights.nested(name))
        return Layer(name=name, kind="Network", config={}, calls=calls, masks=masks, inner=network)
    repeated = layer["config"].get("layer") if layer["class_name"] == "TimeDistributed" else None
    if isinstance(repeated, dict) and _is_model(repeated):
        network = _network(repeated, version, weights.nested(name))
        config = {"name": name}
        return Layer(
            name=name,
            kind="TimeDistributed",
            config=config,
            calls=calls,
            masks=masks,
            inner=network,
        )
    own = weights.of(name, str(layer["class_name"]))
    if own:
        _check_numbers(layer, name, own)
    kind, config, values = modern(str(layer["class_name"]), dict(layer["config"]), own, version)
    if called.arguments:
        config["arguments"] = called.arguments
    return Layer(
        name=name,
        kind=kind,
        config=config,
        calls=calls,
        masks=masks,
        weights=Weights(name, values),
    )


def _check_numbers(layer: Mapping[str, Any], name: str, weights: Mapping[str, Array]) -> None:
    """Raise UnsupportedError where the weights of a layer are no plain numbers of single precision."""
    kind = str(layer["class_name"])
    policy = layer["config"].get("dtype")
    named = policy
    if isinstance(policy, dict):
        named = (policy.get("config") or {}).get("name")
        if "source_name" in (policy.get("config") or {}):
            raise UnsupportedError(
                f"layer `{name}` ({kind}) is quantised ({policy['class_name']})",
                operators=(kind,),
                hint="convert the model as it was before `quantize`",
            )
    if named in ("float16", "bfloat16") and any(one.dtype.kind == "f" for one in weights.values()):
        raise UnsupportedError(
            f"layer `{name}` ({kind}) computes in {named}",
            operators=(kind,),
            hint="set its dtype policy to float32 and save the model again",
        )
    if any("lora_" in one for one in weights):
        raise UnsupportedError(
            f"layer `{name}` ({kind}) holds the factors of LoRA apart",
            operators=(kind,),
            hint="save the model as `.keras`, which merges them",
        )


def _refs(entries: Any) -> tuple[Ref, ...]:
    if isinstance(entries, dict):
        # Keras flattens a dictionary in the order of its sorted keys
        return tuple(ref for key in sorted(entries) for ref in _refs(entries[key]))
    if entries and isinstance(entries[0], str):
        entries = [entries]  # Keras 3 writes a single one without a list around it
    return tuple((str(name), int(node), int(tensor)) for name, node, tensor, *_ in entries)


def _calls(layer: Mapping[str, Any]) -> Calls:
    """Return the tensors that go into each call of a layer, and the mask that some are given.

    Raises UnsupportedError where a call has further tensors, such as initial states.
    """
    if layer["class_name"] in tensor_arguments.KINDS:
        found = list(tensor_arguments.arguments_of(layer))
        inputs = tuple(refs for refs, _ in found)
        return Calls(inputs, (None,) * len(inputs), tuple(named for _, named in found))
    calls: list[tuple[Ref, ...]] = []
    masks: list[Ref | None] = []
    for node in layer.get("inbound_nodes") or []:
        mask: list[Ref] = []
        if isinstance(node, dict):
            named = dict(node.get("kwargs") or {})
            mask = list(_tensors(named.pop("mask", None)))
            states = list(_tensors(named.pop("initial_state", None)))
            extra: list[Any] = [named, list(node.get("args") or [])[1:]]
            further = any(True for _ in _tensors(extra))
            calls.append((*_tensors(node.get("args")), *states))
        else:
            if node and isinstance(node[0], str):
                node = [node]
            parts = [dict(part) for entry in node for part in entry[3:] if part]
            given = [part.pop("initial_state", None) or [] for part in parts]
            states = [ref for one in given for ref in _refs(one)]
            further = any(isinstance(v, list) for one in parts for v in one.values())
            calls.append((*((str(e[0]), int(e[1]), int(e[2])) for e in node), *states))
        if further or len(mask) > 1:
            raise UnsupportedError(
                f"layer `{config_name(layer)}` is called with further tensors by keyword",
                operators=(str(layer["class_name"]),),
            )
        masks.append(mask[0] if mask else None)
    return Calls(tuple(calls), tuple(masks))


def _tensors(value: Any) -> Iterator[Ref]:
    """Yield the tensors among the arguments of a call in a file of Keras 3, in order."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            name, node, tensor = value["config"]["keras_history"]
            yield str(name), int(node), int(tensor)
        else:
            for key in sorted(value):
                yield from _tensors(value[key])
    elif isinstance(value, list):
        for one in value:
            yield from _tensors(one)
