"""Lookups and pooling computed by definition, segment by segment, in float64.

Written from `ksum_op.cc` and `take_op.cc` of x-deeplearning 1.x, apart from the mapping to ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.xdl.sparse import Pooled, Taken
from deploykit._plugins.converters.xdl.tables import Table

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def vectors(table: Table, ids: Array) -> Array:
    """Return the vectors [n, width] of `ids`; zeros for ids that the table lacks."""
    import numpy as np

    found = np.zeros((len(ids), table.width))
    if table.is_pair:
        known = {(int(a), int(b)): row for row, (a, b) in enumerate(table.keys)}
        for at, (a, b) in enumerate(ids):
            row = known.get((int(a), int(b)))
            if row is not None:
                found[at] = table.rows[row]
        return found
    _, theirs, ours = np.intersect1d(table.keys, ids, return_indices=True)
    row_of = dict(zip(ids[ours].tolist(), theirs.tolist(), strict=True))
    for at, one in enumerate(ids.tolist()):
        if one in row_of:
            found[at] = table.rows[row_of[one]]
    return found


def compute(
    source: Pooled | Taken, feed: Mapping[str, Array], tables: Mapping[str, Table]
) -> Array:
    """Return what XDL feeds to the dense network: a row for each segment, or for each candidate.

    Raises ValueError where the inputs do not fit together.
    """
    import numpy as np

    if isinstance(source, Taken):
        inner = compute(source.of, feed, tables)
        places = feed[source.indicator.name]
        if places.size and not 0 <= places.min() <= places.max() < len(inner):
            raise ValueError(f"`{source.indicator.name}` points to a row that is not there")
        return np.asarray(inner[places])
    rows = vectors(tables[source.table], feed[source.ids.name])
    if source.index is not None:
        rows = rows[feed[source.index.name]]
    if source.values is not None and feed[source.values.name].size:
        weights = feed[source.values.name].astype(np.float64)
        if len(weights) != len(rows):
            raise ValueError(
                f"`{source.values.name}` has {len(weights)} values for {len(rows)} ids"
            )
        rows = rows * weights[:, None]
    ends = np.clip(feed[source.segments.name].reshape(-1), 0, len(rows))
    found = np.zeros((len(ends), source.width(rows.shape[1])))
    begin = 0
    for at, end in enumerate(ends):
        if end > begin and source.length is not None:
            own = rows[begin:end][::-1] if source.reverse else rows[begin:end]
            numbers = own.reshape(-1)[: source.length]
            found[at, : len(numbers)] = numbers
        elif end > begin:
            total = rows[begin:end].sum(axis=0)
            found[at] = total / (end - begin) if source.average else total
        begin = int(end)
    return found
