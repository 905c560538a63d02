"""Keras: HDF5 files (1 and 2), `.keras` archives (3), and JSON or YAML with weights apart.

Of an HDF5 file only its attributes are read: the model's configuration is one of them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.formats.content import LARGEST_DOCUMENT, Content, damaged, open_content, shown
from deploykit.formats.hdf5_attributes import MAGIC, check_end, find, text_attribute
from deploykit.formats.json_document import parse
from deploykit.formats.reading import MissingWeightsError, Reading, counted
from deploykit.formats.yaml_document import parse_yaml

if TYPE_CHECKING:
    from deploykit.formats.zip_archive import Archive


def recognises_hdf5(content: Content) -> bool:
    """Whether the file is HDF5 with the configuration of a Keras model."""
    return content.starts_with(MAGIC) and find(content, b"model_config") >= 0


def recognises_weights(content: Content) -> bool:
    """Whether the file is HDF5 with the weights of a Keras model, but not its configuration."""
    return content.starts_with(MAGIC) and find(content, b"layer_names") >= 0


def recognises_json(content: Content) -> bool:
    """Whether the file is the JSON of a Keras model without its weights."""
    head = bytes(content.view[:512]).lstrip()
    if not head.startswith(b"{") or content.size > LARGEST_DOCUMENT:
        return False
    keys = (b'"class_name"', b'"config"')
    return all(find(content, key) >= 0 for key in keys) and b'"base_code"' not in head


def read_hdf5(content: Content) -> Reading:
    """Read a whole model in HDF5. Raises SourceError where it is damaged."""
    check_end(content)
    details = {}
    if version := text_attribute(content, "keras_version"):
        details["producer"] = f"Keras {shown(version)}"
    # Keras 1 does not say which backend's convolution the weights are for
    details["backend"] = shown(text_attribute(content, "backend") or "not in the file")
    config: Any = {}
    if written := text_attribute(content, "model_config"):
        try:
            config = json.loads(written)
        except (ValueError, RecursionError) as error:
            reason = f"its configuration is no JSON ({error})"
            raise damaged(content.path, "Keras model", reason) from error
    if not isinstance(config, dict):
        raise damaged(content.path, "Keras model", "its configuration is no object")
    if config:
        details["model"] = shown(str(config.get("class_name")))
    return Reading(
        format="keras/hdf5",
        location=content.path,
        files=(content.path,),
        operators=_layers(config),
        details=details,
    )


def recognises_yaml(content: Content) -> bool:
    """Whether the file is the YAML of a Keras model without its weights."""
    head = bytes(content.view[:64]).lstrip()
    starts = (b"backend:", b"class_name:", b"config:", b"keras_version:")
    return head.startswith(starts) and all(
        find(content, key) >= 0 for key in (b"class_name:", b"config:")
    )


def read_json(content: Content) -> Reading:
    """Read a model's JSON and find its weights. Raises SourceError where they are missing."""
    return _read_apart(content, "keras/json", parse(content, "Keras configuration"))


def read_yaml(content: Content) -> Reading:
    """Read a model's YAML and find its weights. Raises SourceError where they are missing."""
    try:
        config = parse_yaml(content.document())
    except ValueError as error:
        raise damaged(content.path, "Keras configuration", error) from error
    return _read_apart(content, "keras/yaml", config)


def _read_apart(content: Content, format: str, config: dict[str, Any]) -> Reading:
    path = content.path
    details = {"backend": shown(str(config.get("backend", "not in the file")))}
    if version := config.get("keras_version"):
        details["producer"] = f"Keras {shown(str(version))}"
    reading = Reading(
        format=format, location=path, files=(path,), operators=_layers(config), details=details
    )
    weights = _weights_beside(path)
    if weights is None:
        raise MissingWeightsError(
            f"the weights of `{path}` are missing: no HDF5 file with weights is beside it",
            hint=f"copy it into `{path.parent}`, or name it: `--set weights=FILE.h5`",
            reading=reading,
        )
    check_end(open_content(weights))
    return replace(reading, files=(path, weights))


def read_archive(content: Content) -> Reading:
    """Read a `.keras` archive. Raises SourceError where it is damaged."""
    from deploykit.formats.zip_archive import Archive

    with Archive(content) as archive:
        return _read_archive(content, archive)


def _read_archive(content: Content, archive: Archive) -> Reading:
    documents: dict[str, dict[str, Any]] = {}
    for name in ("config.json", "metadata.json"):
        try:
            documents[name] = dict(json.loads(archive.read(name)))
        except (ValueError, TypeError, RecursionError) as error:
            raise damaged(content.path, "Keras archive", f"`{name}`: {error!r}") from error
    if "model.weights.h5" not in archive:
        raise SourceError(
            f"the weights in `{content.path}` are missing: it has no `model.weights.h5`",
            hint="save the model again with model.save(FILE)",
        )
    config, metadata = documents["config.json"], documents["metadata.json"]
    return Reading(
        format="keras/v3",
        location=content.path,
        files=(content.path,),
        operators=_layers(config),
        details={
            "producer": f"Keras {shown(str(metadata.get('keras_version')))}",
            "model": shown(str(config.get("class_name"))),
        },
    )


def _layer_list(config: dict[str, Any]) -> list[Any]:
    """Return the layers of a model: a list in Keras 1 and 2.0, in a dict later."""
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    return layers if isinstance(layers, list) else []


def _layers(config: dict[str, Any]) -> dict[str, int]:
    """Count the layers by class, those of models within the model too."""
    names: list[str] = []
    waiting = _layer_list(config)[::-1]
    while waiting:
        layer = waiting.pop()
        if not isinstance(layer, dict):
            continue
        inner = _layer_list(layer)
        if inner:
            waiting += inner[::-1]
        else:
            names.append(shown(str(layer.get("class_name"))))
    return counted(names)


def _weights_beside(path: Path) -> Path | None:
    found = []
    for suffix in (".h5", ".hdf5"):
        for candidate in sorted(path.parent.glob(f"*{suffix}")):
            content = open_content(candidate)
            if recognises_weights(content) and not recognises_hdf5(content):
                found.append(candidate)
    return found[0] if len(found) == 1 else None
