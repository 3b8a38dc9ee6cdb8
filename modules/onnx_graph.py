"""Image networks as ONNX graphs, which other programs run: packed codes out, smaller weights, whole numbers."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from utils.errors import UserError


class Packed(nn.Module):
    """uint8 images [N, S, S, 3] → (packed codes uint8 [N, ceil(K/8)], U_image float32 [N, K]) by an image network.

    `settings` describe it and have at least its "code_length". `scale` and `bias`, [3], normalise the levels of a
    colour. Bits are packed in the order of `np.packbits`; a bit is 1 where U_image >= 0.
    """

    places: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, network: nn.Module, settings: dict[str, Any], scale: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        bit = torch.arange(settings["code_length"])
        places = torch.zeros(len(bit), -(-len(bit) // 8))  # [K, bytes]: the value of each bit in its byte
        places[bit, bit // 8] = 2.0 ** (7 - bit % 8)
        self.register_buffer("places", places)
        self.register_buffer("scale", torch.from_numpy(scale)[:, None, None])
        self.register_buffer("bias", torch.from_numpy(bias)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.permute(0, 3, 1, 2).float() * self.scale + self.bias  # [N, 3, S, S]
        outputs = self.network(pixels)[1]
        return ((outputs >= 0).float() @ self.places).to(torch.uint8), outputs


def to_graph(network: Packed, image_size: int) -> onnx.ModelProto:
    """The graph of a network in eval mode: "images" → "codes" and "outputs", for any number of images."""
    with _without_warnings():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8),),
            dynamo=True,
            input_names=["images"],
            output_names=["codes", "outputs"],
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    graph.graph.ClearField("metadata_props")
    for part in (*graph.graph.node, *graph.graph.initializer, *graph.graph.value_info):
        part.ClearField("metadata_props")  # the exporter notes the files of our code and their folders
        part.ClearField("doc_string")
    return graph


def store_halves(graph: onnx.ModelProto) -> None:
    """Turn each weight of a graph of `to_graph` into float16 and a Cast, which a program computes once, when it loads.

    Raises:
        UserError: a weight is too large for float16.
    """
    casts = []
    for value in graph.graph.initializer:
        if value.data_type != onnx.TensorProto.FLOAT or value.name in ("scale", "bias", "places"):
            continue
        name, array = value.name, numpy_helper.to_array(value)
        if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise UserError(
                f"--precision float16: '{name}' has weights beyond 65,504, its largest number; use float32."
            )
        value.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [value.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    graph.graph.ClearField("node")
    graph.graph.node.extend(nodes)


def quantised(graph: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """Convolutions and linear layers in 8 bits, with the ranges of their inputs measured on images uint8 [n, S, S, 3].

    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html (static, QDQ). The hash layer and the
    packing stay as they are: they take no time, and rounding there flips bits.
    """
    from onnxruntime import quantization  # slow to import

    class Reader(quantization.CalibrationDataReader):
        batches = iter(np.array_split(images, -(-len(images) // 20)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    kept = [
        node.name for node in graph.graph.node if any("hash_layer" in name or name == "places" for name in node.input)
    ]
    with _without_warnings(), tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            graph,
            str(target),
            Reader(),
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=kept,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
        )
        return onnx.load(str(target))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """The exporter warns of its own code, and the quantiser advises a step that changes nothing here."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
