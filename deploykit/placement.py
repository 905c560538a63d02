"""Where a model really ran: device by device, how many operations and what share of the time.

A runtime that lacks a kernel for the device asked for often takes another device without a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deploykit.errors import UnsupportedError
from deploykit.protocol import OperatorRun

_NAMED = 6
"""So many operators are named in a sentence; more make it unreadable."""


@dataclass(frozen=True, kw_only=True)
class DeviceShare:
    """What ran on one device: `nodes` of the model, and `time_share` of the time, 0 to 1.

    An operation that the runtime fused counts as the ONNX nodes it stands for, where those are
    known. `time_share` is None where the runtime does not time operations.
    """

    nodes: int
    time_share: float | None = None
    operators: tuple[str, ...] = ()


def shares(runs: Sequence[OperatorRun]) -> dict[str, DeviceShare]:
    """Return the share of every device that ran something, the largest number of nodes first."""
    times = [run.time_us for run in runs]
    whole = sum(time for time in times if time is not None)
    timed = whole > 0 and None not in times
    found = {}
    for device in dict.fromkeys(run.device for run in runs):
        there = [run for run in runs if run.device == device]
        spent = sum(run.time_us or 0.0 for run in there)
        found[device] = DeviceShare(
            nodes=sum(max(1, len(run.nodes)) for run in there),
            # to the percent: finer differs between two runs of the same model
            time_share=round(spent / whole, 2) if timed else None,
            operators=tuple(sorted({run.operator for run in there})),
        )
    return dict(sorted(found.items(), key=lambda item: (-item[1].nodes, item[0])))


def elsewhere(device: str, placement: dict[str, DeviceShare]) -> dict[str, DeviceShare]:
    """Return what of `placement` did not run on `device`.

    A device such as `hetero:gpu,cpu` is several; one that begins with `auto` leaves the choice to
    the runtime, so that nothing is elsewhere.
    """
    first, *others = re.split("[:,]", device)
    if first == "auto":
        return {}
    return {
        name: share for name, share in placement.items() if name not in (device, first, *others)
    }


def described(device: str, placement: dict[str, DeviceShare]) -> str:
    """Return in one line what did not run on `device`, empty where everything did."""
    away = elsewhere(device, placement)
    whole = sum(share.nodes for share in placement.values())
    parts = []
    for name, share in away.items():
        time = "" if share.time_share is None else f", {share.time_share * 100:.0f} % of the time,"
        more = len(share.operators) - _NAMED
        listed = ", ".join(share.operators[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        parts.append(f"{share.nodes} of {whole} nodes{time} ran on {name}: {listed}")
    return "; ".join(parts)


def check(device: str, placement: dict[str, DeviceShare], *, what: str) -> None:
    """Raise UnsupportedError, naming the operators, where something did not run on `device`."""
    away = elsewhere(device, placement)
    if away:
        raise UnsupportedError(
            f"{what}: {described(device, placement)}",
            hint="leave out `--strict-placement` to take it as it is",
            operators=tuple(sorted({name for share in away.values() for name in share.operators})),
        )
