"""Which framework a model's code is of: by its imports, as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.errors import SourceError, UsageError
from deploykit.formats import inspect


@pytest.mark.parametrize(
    ("code", "format"),
    [
        ("import theano.tensor as T", "theano/reference"),
        ("from lasagne.layers import DenseLayer", "theano/reference"),
        ("import numpy, pytensor.tensor as pt", "theano/reference"),
        ("import torch\nimport theano", "pytorch/module"),
        ("from paddle import nn", "paddle/layer"),
        ("def inner():\n    import flax.linen as nn", "jax/reference"),
        ("from . import torch_like\nfrom .theano import x", "pytorch/module"),
        ("import theanolike", "pytorch/module"),
        ("x = 'import theano'", "pytorch/module"),
    ],
)
def test_imports_say_the_framework(code: str, format: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    # importing it would be an error: it is only looked at
    path.write_text(f"{code}\ndef build():\n    return 1\nraise SystemExit\n")
    assert inspect(f"{path}:build").format == format
    assert inspect(f"{path}:build", format="theano/reference").format == "theano/reference"


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("import theano\ndef build():\n    return 1\n")
    with pytest.raises(SourceError, match="did you mean `build`"):
        inspect(f"{path}:biuld")
    with pytest.raises(UsageError, match="no format"):
        inspect(f"{path}:build", format="theano/reference_")
