"""`torch.stft` of a script from before complex tensors: real and imaginary part in a last axis of two.

Since PyTorch 2.0 it needs `return_complex`, which files of older versions do not give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

REPAIR = "torch.stft without return_complex, which torch 2 refuses, gives real and imaginary parts"


def arguments(args: tuple[Any, ...]) -> dict[str, Any]:
    """Name the arguments of `aten::stft`, whose newer overload also pads (`center`, `pad_mode`)."""
    names = ["x", "n_fft", "hop_length", "win_length", "window"]
    if len(args) > 6 and isinstance(args[6], str):
        names += ["center", "pad_mode"]
    names += ["normalized", "onesided", "return_complex", "align_to_window"]
    found = {"center": False, "pad_mode": "reflect", **dict(zip(names, args, strict=False))}
    size = found["n_fft"]
    found["hop_length"] = size // 4 if found["hop_length"] is None else found["hop_length"]
    found["win_length"] = size if found["win_length"] is None else found["win_length"]
    return found


def is_old(args: tuple[Any, ...]) -> bool:
    """Say whether a call of `aten::stft` is one that torch 2 refuses."""
    return not arguments(args).get("return_complex") and not args[0].is_complex()


def computed(*args: Any) -> Any:
    """Compute `aten::stft` with torch's own, the old result where the old one is asked for."""
    import torch

    given = arguments(args)
    old = is_old(args)
    result = torch.stft(
        given["x"],
        given["n_fft"],
        given["hop_length"],
        given["win_length"],
        given["window"],
        center=given["center"],
        pad_mode=given["pad_mode"],
        normalized=bool(given.get("normalized")),
        onesided=given.get("onesided"),
        return_complex=True,
    )
    return torch.view_as_real(result) if old else result


def convolved(constant: Callable[[str, Callable[[], Any]], Any]) -> Callable[..., Any]:
    """Return `aten::stft` as a convolution with windowed cosines and sines, which any runtime has.

    X[f, t] = Σ_n x[t·hop + n] · w[n] · exp(-2πi·f·n / n_fft). `constant` keeps a tensor under a name.
    """

    def run(*args: Any) -> Any:
        import torch
        from torch.nn import functional

        given = arguments(args)
        if not is_old(args):
            return computed(*args)
        x, size, hop = given["x"], given["n_fft"], given["hop_length"]
        one_sided = given.get("onesided") is not False
        bins = size // 2 + 1 if one_sided else size
        basis = constant(f"dft_{size}_{bins}", lambda: _basis(size, bins)).to(x.dtype)
        window = given["window"]
        if window is None:
            window = torch.ones(given["win_length"], dtype=x.dtype)
        left = (size - given["win_length"]) // 2
        window = functional.pad(window, (left, size - given["win_length"] - left))
        signal = x if x.dim() == 2 else x.unsqueeze(0)
        signal = signal.unsqueeze(1)
        if given["center"]:
            signal = functional.pad(signal, (size // 2, size // 2), mode=given["pad_mode"])
        frames = functional.conv1d(signal, basis * window, stride=hop)
        parts = torch.stack([frames[:, :bins], frames[:, bins:]], dim=-1)
        if given.get("normalized"):
            parts = parts * float(size) ** -0.5
        return parts if x.dim() == 2 else parts.squeeze(0)

    return run


def _basis(size: int, bins: int) -> Any:
    """Return cosines, then sines, [2 · bins, 1, size] float32."""
    import numpy as np
    import torch

    # the angle modulo one turn first: exact for any size
    turns = (np.arange(bins)[:, None] * np.arange(size)[None, :]) % size
    angle = -2 * np.pi * turns / size
    basis = np.concatenate([np.cos(angle), np.sin(angle)])[:, None]
    return torch.from_numpy(basis.astype(np.float32))
