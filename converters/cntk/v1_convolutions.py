"""Convolution and pooling of CNTK v1 as those of v2.

Old models keep images with the channels first in a shape (layout HWC: channels, width, height);
they are turned around their windows. Their kernels are matrices of maps by elements.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk import v1_shapes
from deploykit._plugins.converters.cntk.graph import Axis
from deploykit._plugins.converters.cntk.v1_file import RawNode

if TYPE_CHECKING:
    from deploykit._plugins.converters.cntk.v1_translation import Translation

Shape = tuple[int, ...]

POOLING_TYPES = {"max": 0, "average": 1}


def convolution(made: Translation, node: RawNode) -> None:
    """Translate a Convolution."""
    kernel, data = node.inputs
    shape, own, fields = made.shapes.get(data), made.shapes.get(kernel), node.fields
    maps = math.prod(fields["maps"])
    if shape is None or own is None:
        made.refuse(node, "of an unknown shape")
        return
    if fields["layout"] == "HWC":
        _channels_first(made, node, shape, maps)
        return
    if fields["maps"] and maps != fields["maps"][-1]:
        made.refuse(node, "with maps along the picture")
        return
    along = v1_shapes.window(node, shape)
    whole = (*along["kernel"], maps)
    # a matrix of maps by elements holds the kernel's numbers in the kernel's own order
    if fields["two_axes"] or len(own) == 2 or len(own) < len(whole):
        kernel = made.as_shape(kernel, whole, "kernel", node)
    made.emit(
        node,
        "Convolution",
        (kernel, data),
        transpose=fields["transpose"],
        outputShape=fields.get("output_shape", ()),
        dilation=tuple(along["dilation"]),
        groups=fields["groups"],
        **_window(node, along),
    )


def _window(node: RawNode, along: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "strides": tuple(along["strides"]),
        "sharing": tuple(node.fields.get("sharing", (True,))) or (True,),
        "autoPadding": tuple(bool(one) for one in along["auto"]),
        "lowerPad": tuple(along["lower"]),
        "upperPad": tuple(along["upper"]),
    }


def pooling(made: Translation, node: RawNode) -> None:
    """Translate a Pooling of any number of axes."""
    shape, fields = made.shapes.get(node.inputs[0]), node.fields
    if shape is None or fields["layout"] != "CHW" or fields["pooling"] not in POOLING_TYPES:
        made.refuse(node, f"{fields['pooling']}, {fields['layout']}")
        return
    along = v1_shapes.window(node, shape)
    made.emit(
        node,
        "Pooling",
        node.inputs,
        poolingType=POOLING_TYPES[fields["pooling"]],
        poolingWindowShape=tuple(along["kernel"]),
        ceilOutDim=fields["ceiling"],
        includePad=fields["include_pad"],
        **_window(node, along),
    )


def unpooling(made: Translation, node: RawNode) -> None:
    """Translate a MaxUnpooling."""
    shape = made.shapes.get(node.inputs[0])
    if shape is None or node.fields["layout"] != "CHW":
        made.refuse(node, "of channels first, or of an unknown shape")
        return
    along = v1_shapes.window(node, shape)
    made.emit(
        node,
        "Unpooling",
        node.inputs,
        poolingType=POOLING_TYPES["max"],
        unpoolingWindowShape=tuple(along["kernel"]),
        **_window(node, along),
    )


def roi_pooling(made: Translation, node: RawNode) -> None:
    """Translate a ROIPooling: before version 26 its regions were ratios, not places."""
    if made.network.version < 26:
        made.refuse(node, "with regions as ratios, before model version 26")
        return
    made.emit(
        node,
        "ROIPooling",
        node.inputs,
        poolingType=POOLING_TYPES.get(node.fields["pooling"], -1),
        roiOutputShape=node.fields["output_shape"],
        spatialScale=node.fields["scale"],
    )


def old_pooling(made: Translation, node: RawNode) -> None:
    """Translate a MaxPooling or AveragePooling."""
    shape, fields = made.shapes.get(node.inputs[0]), node.fields
    if shape is None or len(shape) != 3:
        made.refuse(node, "of an unknown shape")
        return
    window = {
        "poolingType": POOLING_TYPES["max" if node.op == "MaxPooling" else "average"],
        "poolingWindowShape": (*fields["kernel"], 1),
        "strides": (*fields["strides"], 1),
        "sharing": (True,),
        "autoPadding": (False,) * 3,
        "lowerPad": (0,) * 3,
        "upperPad": (0,) * 3,
        "ceilOutDim": False,
        "includePad": False,
    }
    if fields["layout"] == "CHW":
        made.emit(node, "Pooling", node.inputs, **window)
        return
    if not _square(shape, fields):
        made.refuse(node, "of channels first and unequal sides")
        return
    turned = _turned(made, node, node.inputs[0], shape)
    out = made.shapes.get(node.name)
    sizes = None if out is None else (*out[1:], out[0])
    _back(made, node, made.between(node, "pooled", "Pooling", [turned], sizes, **window))


def _channels_first(made: Translation, node: RawNode, shape: Shape, maps: int) -> None:
    """Translate a convolution of two axes in layout HWC.

    The kernel's matrix has an element (map, channel * size + place), column after column, and a
    padded window begins half of itself before the picture: `AssignPackedConvolutionInput` in CNTK.
    """
    fields = node.fields
    if not fields["two_axes"] or len(shape) != 3 or not _square(shape, fields):
        made.refuse(node, "of channels first and unequal sides")
        return
    size, stride, channels = fields["kernel"][0], fields["strides"][0], shape[0]
    values = made.parameter(node.inputs[0])
    if values is None or values.size != maps * channels * size * size:
        made.refuse(node, "of channels first with a computed kernel")
        return
    kernel = made.constant(
        f"{node.inputs[0]}/kernel of {node.name}",
        values.reshape(channels, size, size, maps).transpose(3, 0, 1, 2),
    )
    lower = upper = 0
    if fields["auto_padding"][0]:
        places = (shape[1] - size % 2) // stride + 1
        lower = size // 2
        upper = max(0, (places - 1) * stride + size - shape[1] - lower)
    turned = _turned(made, node, node.inputs[1], shape)
    out = made.shapes.get(node.name)
    found = made.between(
        node,
        "convolved",
        "Convolution",
        [kernel, turned],
        None if out is None else (*out[1:], out[0]),
        strides=(stride, stride, channels),
        sharing=(True,),
        autoPadding=(False,) * 3,
        lowerPad=(lower, lower, 0),
        upperPad=(upper, upper, 0),
        transpose=False,
        outputShape=(),
        dilation=(1, 1, 1),
        groups=1,
    )
    _back(made, node, found)


def _square(shape: Shape, fields: Any) -> bool:
    """Whether width and height are alike: CNTK's old engine takes one for the other."""
    kernel, strides = fields["kernel"], fields["strides"]
    return shape[1] == shape[2] and kernel[0] == kernel[1] and strides[0] == strides[1]


def _turned(made: Translation, node: RawNode, data: str, shape: Shape) -> str:
    """Bring (channels, width, height) to (width, height, channels)."""
    channels, width, height = shape
    once = made.between(
        node,
        "turned once",
        "TransposeAxes",
        [data],
        (width, channels, height),
        axis1=Axis(index=0),
        axis2=Axis(index=1),
    )
    turned: str = made.between(
        node,
        "turned",
        "TransposeAxes",
        [once],
        (width, height, channels),
        axis1=Axis(index=1),
        axis2=Axis(index=2),
    )
    return turned


def _back(made: Translation, node: RawNode, data: str) -> None:
    """Bring (width, height, channels) to (channels, width, height), the value of `node`."""
    once = made.between(
        node, "turned back", "TransposeAxes", [data], axis1=Axis(index=1), axis2=Axis(index=2)
    )
    made.emit(node, "TransposeAxes", (once,), axis1=Axis(index=0), axis2=Axis(index=1))
