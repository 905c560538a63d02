"""Where variables and tables come from: the serving export beside the graph, or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deploykit._plugins.converters.mxnet.reading import read_parameters
from deploykit._plugins.converters.xdl import checkpoint
from deploykit._plugins.converters.xdl.tables import Table, read_text

from deploykit.errors import SourceError, UsageError
from deploykit.formats.content import shown
from deploykit.tensors import read_tensors

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Weights(Protocol):
    """Variables by the names that the graph has for them."""

    def dense(self, name: str) -> Array:
        """Return a variable. Raises SourceError where it is missing."""

    def table(self, name: str, width: int | None) -> Table:
        """Return a table of vectors of `width`. Raises SourceError where it is missing."""


class Export:
    """A serving export: `dense.npz` (TensorFlow) or `dense.txt` (MXNet), and a text file a table."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, Array] | None = None

    def dense(self, name: str) -> Array:
        if self._arrays is None:
            self._arrays = self._read()
        key = name.replace("/", "$")
        if key not in self._arrays:
            raise SourceError(
                f"the dense weights in `{self._folder}` lack `{shown(name)}`",
                hint="export the weights of the same graph, or name a checkpoint: "
                "`--set checkpoint=FOLDER`",
            )
        return self._arrays[key]

    def _read(self) -> dict[str, Array]:
        npz, arrays = self._folder / "dense.npz", self._folder / "dense.txt"
        if npz.is_file():
            try:
                return read_tensors(npz)
            except UsageError as error:
                raise SourceError(error.message, hint="copy or export it again") from error
        if arrays.is_file():
            # an NDArray file in spite of its name; variables are `var:NAME`, statistics `aux:NAME`
            found = read_parameters(arrays)
            return {name.removeprefix("var:"): array for name, array in found.items()}
        raise SourceError(
            f"the dense weights of the graph are missing: neither `dense.npz` nor `dense.txt` lies in "
            f"`{self._folder}`",
            hint="copy them there, or name a checkpoint: `--set checkpoint=FOLDER`",
        )

    def table(self, name: str, width: int | None) -> Table:
        for file in (name.replace("/", "&"), name.replace("/", "$")):
            path = self._folder / file
            if path.parent == self._folder and path.is_file():
                if width is None:
                    raise SourceError(
                        f"the graph does not say how long the vectors of `{shown(name)}` are, and a "
                        "text file cannot tell an id of 128 bits from one of 64",
                        hint="name a checkpoint: `--set checkpoint=FOLDER`",
                    )
                return read_text(path, name, width)
        raise SourceError(
            f"the embedding table `{shown(name)}` is missing: there is no file of that name in "
            f"`{self._folder}`",
            hint="copy it there, name a checkpoint (`--set checkpoint=FOLDER`), or convert the dense "
            "network alone: `--set sparse=pooled`",
        )


class Stored:
    """A checkpoint of the parameter servers."""

    def __init__(self, folder: Path) -> None:
        self._checkpoint = checkpoint.read(folder)

    def dense(self, name: str) -> Array:
        found: Array = self._checkpoint.dense(name)
        return found

    def table(self, name: str, width: int | None) -> Table:
        table = self._checkpoint.table(name)
        if width is not None and table.width != width:
            raise SourceError(
                f"the table `{shown(name)}` has vectors of {table.width}, the graph takes {width}"
            )
        return table
