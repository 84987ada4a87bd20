"""Other projects' runtimes, which serve an exported net on a CPU: arrays in, arrays out. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np

EXTRA = 'pip install "resnet-min[serving]", or in a checkout pip install -e ".[serving]"'


def missing(*packages: str) -> list[str]:
    """Those of `packages` that are not installed; a folder of that name where Python looks is no package."""
    found = {name: importlib.util.find_spec(name) for name in packages}
    return [name for name, spec in found.items() if spec is None or spec.origin is None]


def expect(what: str, *packages: str) -> None:
    """Raise UserError unless all `packages`, which `what` needs, are installed."""
    if absent := missing(*packages):
        raise UserError(f"{what} needs {' and '.join(absent)}, not installed here: {EXTRA}")


def onnx_runtime(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """The net of an .onnx file in ONNX Runtime: images [B, 3, H, W] float32 -> outputs. Many threads may call it.

    Raises UserError where the package is missing.
    """
    expect("ONNX Runtime", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (name,) = (image.name for image in session.get_inputs())
    return lambda images: session.run(None, {name: images})[0]


def openvino(
    file: Path, threads: int, shape: tuple[int, ...], precision: str = "f32"
) -> Callable[[np.ndarray], np.ndarray]:
    """The net of an .onnx file, or of OpenVINO's own .xml, compiled by OpenVINO for one `shape` of images and latency.

    One thread may call it at a time, and the next call writes over what the last one returned. precision: "f32" or
    "bf16", of the arithmetic; images and outputs are float32. Raises UserError where the package is missing.
    """
    expect("OpenVINO", "openvino")
    import openvino as ov

    core = ov.Core()
    net = core.read_model(file)
    net.reshape(list(shape))
    how = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(net, "CPU", how).create_infer_request()
    return lambda images: request.infer([images], share_inputs=True, share_outputs=True)[0]
