"""Formats of which there is no shared model: one made by the framework itself, by a script or code here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import yaml

from deploykit import environments, plugins

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model of `format`: `location` makes it in an empty folder, or is where it lies."""

    format: str
    location: Callable[[Path], Path | str]
    settings: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    trust: bool = False
    named: str | None = None
    """The format where the user must say it (`--from`)."""


def _at(*parts: str) -> Callable[[Path], str]:
    return lambda _folder: str(FIXTURES.joinpath(*parts))


def _by_script(converter: str, script: str, file: str, *names: str) -> Callable[[Path], Path]:
    """Run a script of the fixtures in the environment of `converter`; the model is `file`."""

    def made(folder: Path) -> Path:
        python = environments.interpreter(plugins.converter(converter), install=True)
        command = [str(python), "-I", "-W", "ignore", str(FIXTURES / script), str(folder), *names]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        return folder / file

    return made


def _yaml(folder: Path) -> Path:
    """An architecture in YAML, as `to_yaml` wrote it, of a model that `tf_keras` saved."""
    source = FIXTURES / "keras" / "functions_of_tensorflow.h5"
    path = folder / "architecture.yaml"
    with h5py.File(source) as file:
        path.write_text(yaml.safe_dump(json.loads(file.attrs["model_config"])))
    return path


TREES = "make_scikit_learn_models.py"
MADE = (
    Made(
        format="hugging-face/folder",
        location=_by_script("hugging-face", "make_hugging_face_models.py", "bert", "bert"),
    ),
    Made(format="jax/reference", location=_at("jax_functions.py:convolutions")),
    Made(format="keras/reference", location=_at("code", "keras_models.py:digits")),
    Made(
        format="keras/yaml",
        location=_yaml,
        settings={"weights": str(FIXTURES / "keras" / "functions_of_tensorflow.h5")},
    ),
    Made(
        format="lightgbm/model",
        location=_by_script("scikit-learn", TREES, "lightgbm.txt"),
    ),
    Made(format="paddle/layer", location=_at("code", "paddle_layers.py:with_specs")),
    Made(
        format="pytorch/module",
        location=_at("ultraface.py:slim"),
        inputs=("input:float32[batch,3,240,320]",),
    ),
    Made(
        format="scikit-learn/pickle",
        location=_by_script("scikit-learn", TREES, "forest.pkl"),
        trust=True,
    ),
    Made(format="scikit-learn/skops", location=_by_script("scikit-learn", TREES, "logistic.skops")),
    Made(
        format="theano/parameters",
        location=_at("theano", "python2_0.pkl"),
        settings={"module": str(FIXTURES / "theano" / "lasagne_networks.py:convnet")},
    ),
    Made(format="theano/reference", location=_at("theano", "networks.py:lstm")),
    Made(format="xgboost/model", location=_by_script("scikit-learn", TREES, "xgboost.json")),
)
