"""MXNet's operators over their options, against what MXNet 1.9.1 computed.

The archive is made by `tests/fixtures/make_mxnet_models.py` with MXNet itself.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from deploykit._plugins.converters.mxnet import plugin

from deploykit.errors import UnsupportedError
from deploykit.protocol import ConvertRequest, ReferenceRequest, Source, TensorSpec

ARCHIVE = Path(__file__).resolve().parent.parent / "fixtures" / "mxnet_operators.tar.xz"
with tarfile.open(ARCHIVE) as _archive:
    FILES = {
        entry.name: file.read()
        for entry in _archive
        if (file := _archive.extractfile(entry)) is not None
    }
NAMES = sorted(name.removesuffix("-symbol.json") for name in FILES if name.endswith("-symbol.json"))
REFUSED = (
    "batch_take",
    "cast_bool",
    "cast_float16",
    "cross_entropy",
    "cumsum",
    "detect",
    "detect_options",
    "diag",
    "dot_many",
    "gemm2",
    "int_division",
    "int_mean",
    "int_scalar_division",
    "leaky_rrelu",
    "moments",
    "nanprod_all",
    "nanprod_axis",
    "nanprod_exclude",
    "nanprod_exclude_keep",
    "nanprod_keep",
    "nansum_all",
    "nansum_axis",
    "nansum_exclude",
    "nansum_exclude_keep",
    "nansum_keep",
    "pool_3d_avg",
    "pool_3d_max",
    "pool_avg_full_11_False",
    "pool_avg_full_11_None",
    "pool_avg_full_11_True",
    "pool_lp_default",
    "pool_lp_full_00_None",
    "pool_lp_full_10_None",
    "pool_lp_full_11_None",
    "pool_lp_global",
    "pool_lp_valid_00_None",
    "pool_lp_valid_10_None",
    "pool_lp_valid_11_None",
    "pool_max_full_11_None",
    "pool_nhwc_avg",
    "pool_nhwc_global_avg",
    "pool_nhwc_global_max",
    "pool_nhwc_max",
    "pool_outside_avg",
    "pool_outside_max",
    "prior",
    "prior_options",
    "prior_sizes",
    "resize_odd",
    "roi",
    "roi_align",
    "roi_half",
    "rrelu_bounds",
    "topk_mask",
    "unary_erfinv",
    "unary_gamma",
    "unary_gammaln",
    "unary_shape_array",
    "unary_size_array",
)
"""Cases that have no ONNX form, or none that we write."""


def arrays(name: str, side: str) -> dict[str, Any]:
    start = f"{name}.{side}_"
    return {
        one.removeprefix(start).removesuffix(".npy"): np.load(io.BytesIO(data))
        for one, data in FILES.items()
        if one.startswith(start)
    }


def check(found: Any, wanted: Any, what: str) -> None:
    assert found.shape == wanted.shape, what
    assert found.dtype == wanted.dtype, what
    finite = np.abs(wanted[np.isfinite(wanted)]) if wanted.dtype.kind == "f" else np.abs(wanted)
    scale = max(1.0, float(finite.max(initial=0)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * scale, err_msg=what)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_an_operator_gives_what_mxnet_gives(name: str, tmp_path: Path) -> None:
    for file in (f"{name}-symbol.json", f"{name}-0000.params"):
        (tmp_path / file).write_bytes(FILES[file])
    inputs, wanted = arrays(name, "in"), arrays(name, "out")
    specs = tuple(
        TensorSpec(name=key, dtype=str(value.dtype), shape=value.shape)
        for key, value in inputs.items()
    )
    path = tmp_path / f"{name}-symbol.json"
    source = Source(location=str(path), format="mxnet/symbol", inputs=specs)
    request = ConvertRequest(source=source, output=str(tmp_path / "m.onnx"))
    if name in REFUSED:
        with pytest.raises(UnsupportedError):
            plugin.convert(request)
        return
    signature = plugin.convert(request).signature
    exact = plugin.reference(ReferenceRequest(source=source)).run(inputs)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    found = dict(zip(outputs, session.run(outputs, inputs), strict=True))
    assert set(found) == set(exact) == set(wanted)
    for spec in signature.outputs:
        assert spec.shape == wanted[spec.name].shape
        check(exact[spec.name], wanted[spec.name], "our definition")
        check(found[spec.name], wanted[spec.name], "ONNX Runtime")
