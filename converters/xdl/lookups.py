"""A checkpoint without a graph: each table as a lookup, ids in, vectors out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.xdl import evaluation, mapping
from deploykit._plugins.converters.xdl.checkpoint import Checkpoint
from deploykit._plugins.converters.xdl.tables import Table

from deploykit.errors import SourceError, UsageError
from deploykit.formats.content import shown
from deploykit.graph_building import GraphBuilder
from deploykit.protocol import Dimension, DynamicAxis, Signature, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Lookups:
    """The tables, and what to say about the choice."""

    name: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]

    def build(
        self, given: Mapping[str, TensorSpec], dynamic: tuple[DynamicAxis, ...]
    ) -> tuple[GraphBuilder, Signature]:
        """Build the ONNX graph: `TABLE.ids` in, `TABLE` out. Raises UsageError for unknown inputs."""
        build = GraphBuilder(self.name)
        inputs, outputs = [], []
        for table in self.tables:
            label = f"{table.name}.ids"
            axis: Dimension = f"{table.name}_count"
            for one in dynamic:
                axis = one.name if one.input == label and one.axis == 0 else axis
            spec = TensorSpec(
                name=label, dtype="int64", shape=(axis, 2) if table.is_pair else (axis,)
            )
            spec = given.get(label, spec)
            if spec.dtype != "int64":
                raise UsageError(f"the input `{label}` is int64, not {spec.dtype}")
            ids = build.input(label, "int64", spec.shape or ())
            with build.layer(table.name):
                (vectors,) = mapping.look_up(build, table, [ids])
            shape: tuple[Dimension, ...] = ((spec.shape or (None,))[0], table.width)
            build.output(table.name, vectors, "float32", shape)
            inputs.append(spec)
            outputs.append(TensorSpec(name=table.name, dtype="float32", shape=shape))
        if unknown := [name for name in given if name not in {spec.name for spec in inputs}]:
            raise UsageError(
                f"the model has no input `{unknown[0]}`",
                hint=f"its inputs: {', '.join(spec.name for spec in inputs)}"[:500],
            )
        return build, Signature(inputs=tuple(inputs), outputs=tuple(outputs))

    def evaluate(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the vectors by definition."""
        return {
            table.name: evaluation.vectors(table, feed[f"{table.name}.ids"])
            for table in self.tables
        }


def read(checkpoint: Checkpoint, names: tuple[str, ...]) -> Lookups:
    """Read the tables `names`, or every hash table whose files are there.

    Raises SourceError where there is none, or a file is damaged.
    """
    known = checkpoint.variables
    hashed = tuple(name for name, one in known.items() if one.is_hash and checkpoint.has(name))
    chosen = names or hashed
    if not chosen:
        flat = [name for name, one in known.items() if len(one.shape) == 2 and checkpoint.has(name)]
        raise SourceError(
            f"the checkpoint `{checkpoint.folder}` has no hash table, and no graph that says what its "
            "variables are for",
            hint="name its graph (`--set graph=graph.txt`), or tables to look up "
            f"(`--set tables=NAME`): {', '.join(map(shown, flat[:10])) or 'none is there'}",
        )
    tables = tuple(checkpoint.table(name) for name in chosen)
    left = [name for name in known if name not in chosen]
    notes = ["no graph: each table is a lookup; for the whole model `--set graph=graph.txt`"]
    if left:
        notes.append(f"variables left out: {', '.join(map(shown, left))}"[:300])
    return Lookups("xdl_tables", tables, tuple(notes))
