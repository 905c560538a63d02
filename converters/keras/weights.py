"""Where the weights of a layer lie in Keras' HDF5: by the names of layers, or by class and number.

Formats: `keras/engine/topology.py` of Keras 1.2 and 2.0 (`save_weights_to_hdf5_group`), and
`keras/src/saving/saving_lib.py` of Keras 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LARGEST_RATIO = 200
"""Of a compressed member of an archive, or data set, to what it says it holds; more is a bomb."""


def text_of(value: Any) -> str:
    """Return an attribute as text: HDF5 has bytes of it or text, by the age of h5py."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def layer_list(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the layers of a model's configuration. Raises UnsupportedError for a subclassed one."""
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    if not isinstance(layers, list):
        raise UnsupportedError(
            f"the model is a {config.get('class_name')}, which is code and no graph of layers",
            hint="export it as a TensorFlow SavedModel (`model.export`) and convert that",
        )
    return layers


class Groups:
    """Weights of HDF5 files: a group per layer, whose attribute lists the names in order."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._names = [text_of(name) for name in listed(group.attrs, "layer_names")]

    def of(self, layer: str, kind: str) -> dict[str, Array]:  # noqa: ARG002
        if layer not in self._names:
            return {}
        group = self._group[layer]
        return {
            text_of(name): _array(group[text_of(name)])
            for name in listed(group.attrs, "weight_names")
        }

    def nested(self, layer: str) -> Groups:
        """Return where the weights of a model within the model are: flat, under its own name."""
        return Nested(self.of(layer, ""))


class Nested(Groups):
    """The weights of a model within a model lie in one list, layer after layer."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self._weights = weights

    def of(self, layer: str, kind: str) -> dict[str, Array]:  # noqa: ARG002
        # Keras 2 names a weight after its layer: `conv2d_1/kernel:0`, Keras 1 `conv2d_1_W`
        pattern = re.compile(rf"(?:^|/){re.escape(layer)}(?:_\d+)?[/_]")
        exact = re.compile(rf"(?:^|/){re.escape(layer)}/|^{re.escape(layer)}_[A-Za-z]")
        own = {name: value for name, value in self._weights.items() if exact.search(name)}
        return own or {name: value for name, value in self._weights.items() if pattern.search(name)}

    def nested(self, layer: str) -> Groups:
        return Nested(self.of(layer, "") or self._weights)


class Paths(Groups):
    """Weights of `.keras` archives: by class and number, `layers/conv2d_1/vars/0`."""

    def __init__(self, group: Any, config: Mapping[str, Any], prefix: str = "") -> None:
        self._file = group
        base = next(
            (one for one in ("layers", "_layer_checkpoint_dependencies") if prefix + one in group),
            "layers",
        )
        self._base = prefix + base
        counts: dict[str, int] = {}
        self._places: dict[str, str] = {}
        for layer in layer_list(config):
            inner = layer.get("config", {})
            name = str(layer.get("name") or inner.get("name"))
            stem = snake(str(layer["class_name"]))
            number = counts.get(stem, 0)
            counts[stem] = number + 1
            places = (f"{stem}_{number}" if number else stem, name)
            self._places[name] = next(
                (one for one in places if f"{self._base}/{one}" in group), places[0]
            )
        self._config = {
            str(layer.get("name") or layer["config"].get("name")): layer
            for layer in layer_list(config)
        }

    def of(self, layer: str, kind: str) -> dict[str, Array]:  # noqa: ARG002
        place = f"{self._base}/{self._places.get(layer, layer)}"
        if place not in self._file:
            return {}
        return {name: _array(value) for name, value in _datasets(self._file[place])}

    def nested(self, layer: str) -> Groups:
        place, config = f"{self._base}/{self._places.get(layer, layer)}/", self._config[layer]
        if config["class_name"] == "TimeDistributed":
            place, config = f"{place}layer/", config["config"]["layer"]
        return Paths(self._file, config, place)


def snake(name: str) -> str:
    """Return a class name as Keras 3 writes it in paths (`keras/src/utils/naming.py`)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _datasets(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    import h5py

    # forward before backward, cell before what wraps it, `10` after `9`
    order = {"forward_layer": "0", "backward_layer": "1"}
    for key in sorted(group, key=lambda key: (order.get(key, key), len(key), key)):
        if isinstance(group[key], h5py.Dataset):
            yield prefix + key, group[key]
        elif key not in ("seed_generator", "_seed_generator"):
            yield from _datasets(group[key], f"{prefix}{key}/")


def _array(dataset: Any) -> Array:
    import numpy as np

    if dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2:
        raise UnsupportedError(
            f"the weights `{dataset.name}` are bfloat16",
            hint="set the model's dtype policy to float32 and save it again",
        )
    if dataset.dtype.kind not in "fiub":
        raise ValueError(f"weights of dtype {dataset.dtype}")
    if dataset.nbytes > dataset.file.id.get_filesize() * LARGEST_RATIO:
        raise ValueError(f"weights of {dataset.nbytes} bytes in a smaller file")
    return np.asarray(dataset[()])


def listed(attributes: Any, name: str) -> list[Any]:
    """Return a list of names; where it is too long for one attribute it goes on in `name0`, `name1`."""
    if name in attributes:
        return list(attributes[name])
    found: list[Any] = []
    number = 0
    while f"{name}{number}" in attributes:
        found += list(attributes[f"{name}{number}"])
        number += 1
    return found
