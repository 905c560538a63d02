"""Which inputs a model of transformers takes, and examples of them from its configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploykit._plugins.converters.pytorch.axes import example_tensor

from deploykit.errors import UnsupportedError, UsageError
from deploykit.protocol import Source

BATCH, SEQUENCE = 2, 12
SAMPLES = 16_000
"""One second of sound at the rate that speech models are trained on."""

Example = tuple[Any, dict[int, str]]
"""A tensor, and names of its dynamic axes."""


def forward_names(model: Any) -> tuple[str, ...]:
    """Return the names of the arguments of the model's forward call."""
    return tuple(inspect.signature(model.forward).parameters)


def example_inputs(
    model: Any, config: Any, source: Source
) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    """Return example tensors by argument, and the names of their dynamic axes.

    Inputs that `source.inputs` names take their place or are added. Raises UnsupportedError where the
    configuration does not say what an input looks like, UsageError where the model has no such input.
    """
    known = forward_names(model)
    found = _standard(model, config, known, Path(source.location))
    for spec in source.inputs:
        if spec.name not in known:
            raise UsageError(
                f"`{type(model).__name__}` has no input `{spec.name}`",
                hint=f"its inputs: {', '.join(known)}",
            )
        axes = {
            axis: size or f"{spec.name}_axis{axis}"
            for axis, size in enumerate(spec.shape or ())
            if not isinstance(size, int)
        }
        if spec.shape is None:
            continue
        old = found.get(spec.name)
        sizes = tuple(
            size
            if isinstance(size, int)
            else int(old[0].shape[axis])
            if old is not None and old[0].ndim == len(spec.shape)
            else (SEQUENCE if axis else BATCH)
            for axis, size in enumerate(spec.shape)
        )
        found[spec.name] = (
            example_tensor(type(spec)(name=spec.name, dtype=spec.dtype, shape=sizes)),
            axes,
        )
    if not found:
        raise UnsupportedError(
            f"config.json does not say what the input `{model.main_input_name}` of "
            f"`{type(model).__name__}` looks like",
            hint=f"give it: --input '{model.main_input_name}:float32[batch,…]'",
        )
    return {name: one[0] for name, one in found.items()}, {
        name: one[1] for name, one in found.items()
    }


def _standard(model: Any, config: Any, known: tuple[str, ...], folder: Path) -> dict[str, Example]:
    makers: dict[str, Callable[[Any, Path, int], Example | None]] = {
        "input_ids": _tokens,
        "pixel_values": _pixels,
        "input_features": _features,
        "input_values": _sound,
    }
    main = model.main_input_name
    if main not in makers or (made := makers[main](config, folder, BATCH)) is None:
        return {}
    found = {main: made}
    if main == "input_ids":
        tensor, axes = made
        text = getattr(config, "text_config", None) or config
        if "pixel_values" in known and getattr(config, "vision_config", None) is not None:
            pixels = _pixels(config, folder, BATCH + 1)
            if pixels is not None:
                # texts and images are compared all with all: two batches
                axes = {**axes, 0: "text_batch"}
                found = {
                    main: (tensor, axes),
                    "pixel_values": (pixels[0], {0: "image_batch"}),
                }
        if "attention_mask" in known:
            found["attention_mask"] = (_ones(tensor), axes)
        if "token_type_ids" in known and int(getattr(text, "type_vocab_size", 0) or 0) > 1:
            found["token_type_ids"] = (_ones(tensor) * 0, axes)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in known:
        ids, _ = _tokens(config, folder, BATCH)
        # a copy: torch.export tells a view from its base
        found["decoder_input_ids"] = (
            ids[:, : SEQUENCE // 2].clone(),
            {0: "batch", 1: "decoder_sequence"},
        )
    return found


def _ones(tensor: Any) -> Any:
    import torch

    return torch.ones_like(tensor)


def _tokens(config: Any, folder: Path, batch: int) -> Example:  # noqa: ARG001
    import torch

    text = getattr(config, "text_config", None) or config
    longest = int(getattr(text, "max_position_embeddings", 0) or SEQUENCE)
    length = max(2, min(SEQUENCE, longest - 4))
    return torch.ones((batch, length), dtype=torch.int64), {0: "batch", 1: "sequence"}


def _pixels(config: Any, folder: Path, batch: int) -> Example:
    import torch

    vision = getattr(config, "vision_config", None) or config
    channels = int(getattr(vision, "num_channels", 0) or 3)
    height, width = (
        _sides(getattr(vision, "image_size", None)) or _preprocessed(folder) or (224, 224)
    )
    shape = (batch, channels, height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)), {0: "batch"}


def _sides(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int) and size > 0:
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    return None


def _preprocessed(folder: Path) -> tuple[int, int] | None:
    """Return the size to which the model's own preprocessing brings images, where it says one."""
    path = folder / "preprocessor_config.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(described, dict):
        return None
    return _sides(described.get("crop_size")) or _sides(described.get("size"))


def _features(config: Any, folder: Path, batch: int) -> Example | None:  # noqa: ARG001
    """Return a log-mel spectrogram as Whisper takes it: twice as many frames as positions."""
    import torch

    bins, positions = (
        getattr(config, name, None) for name in ("num_mel_bins", "max_source_positions")
    )
    if not isinstance(bins, int) or not isinstance(positions, int):
        return None
    shape = (batch, bins, 2 * positions)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)), {0: "batch"}


def _sound(config: Any, folder: Path, batch: int) -> Example:  # noqa: ARG001
    import torch

    random = torch.Generator().manual_seed(0)
    bins, frames = (getattr(config, name, None) for name in ("num_mel_bins", "max_length"))
    if isinstance(bins, int) and isinstance(frames, int) and getattr(config, "patch_size", None):
        return torch.rand((batch, frames, bins), generator=random), {0: "batch"}
    return torch.rand((batch, SAMPLES), generator=random), {0: "batch", 1: "samples"}
