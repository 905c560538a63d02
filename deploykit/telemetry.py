"""Telemetry and update checks of every tool that a plugin may bring, switched off by all their names.

The network is for what the user asked for and for nothing else. A tool is told through its own
documented variable where it has one, before it is imported: ONNX Runtime (since 1.29, on Linux too)
sends its first event while it is being imported.

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations

import os
import sys

TELEMETRY_OFF: dict[str, str] = {
    # the convention of many tools, huggingface_hub, MLflow and vLLM among them;
    # https://consoledonottrack.com
    "DO_NOT_TRACK": "1",
    # NVIDIA's name for the same; tensorrt_llm/usage/usage_lib.py
    "TELEMETRY_DISABLED": "1",
    # transformers before 4.35: src/transformers/utils/hub.py
    "DISABLE_TELEMETRY": "1",
    # ONNX Runtime >= 1.29: onnxruntime/core/platform/telemetry_environment.h, whose first name was
    # the second of these; Olive obeys the first too: docs/Privacy.md of both
    "ORT_DISABLE_TELEMETRY": "1",
    "ORT_TELEMETRY_DISABLED": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    # https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    # https://mlflow.org/docs/latest/community/usage-tracking
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # https://docs.ray.io/en/latest/cluster/usage-stats.html
    "RAY_USAGE_STATS_ENABLED": "0",
    # https://docs.vllm.ai/en/latest/usage/usage_stats.html
    "VLLM_NO_USAGE_STATS": "1",
    # tensorrt_llm/usage/usage_lib.py
    "TRTLLM_NO_USAGE_STATS": "1",
    # https://www.gradio.app/guides/environment-variables
    "GRADIO_ANALYTICS_ENABLED": "False",
    # albumentations/check_version.py: asks PyPI for a newer version at import
    "NO_ALBUMENTATIONS_UPDATE": "1",
    # ultralytics/utils/__init__.py: probes name servers at import, installs packages when it likes
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    # paddlex/utils/flags.py: probes every host of models at import
    "PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK": "True",
    # https://pip.pypa.io/en/stable/cli/pip/#cmdoption-disable-pip-version-check
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
"""Variable to value; set in the environment of every process that deploykit starts."""

# OpenVINO's converter and NNCF send without asking unless a file in the user's home says no
# (`opt_in_out --opt_out`), and have no variable for it. Both fall back to their own silent stub where
# the package cannot be imported: openvino/tools/ovc/telemetry_utils.py, nncf/telemetry/wrapper.py.
_SENDERS = ("openvino_telemetry",)


def switch_off() -> None:
    """Switch telemetry off in this very process; call it before a runtime is imported."""
    os.environ.update(TELEMETRY_OFF)


def block_senders() -> None:
    """Make packages that do nothing but send impossible to import, in a process of our own."""
    for name in _SENDERS:
        # None in sys.modules is how the import system says "not found"
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
