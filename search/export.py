"""From a trained network to the one ONNX file that the search uses (docs/encode.md). Needs torch."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from data.decode import DECODING
from data.samples import evenly, sample_images
from data.windows import PIXEL_BIAS, PIXEL_SCALE
from modules.onnx_graph import Packed, quantised, store_halves, to_graph
from modules.trained import load_network
from search.model import FORMAT, Model, sealed
from utils.errors import UserError
from utils.files import write_file
from utils.runs import read_config

NUM_COMPARED, NUM_CALIBRATION = 1000, 200  # images


def packed(network: nn.Module, settings: dict[str, Any]) -> Packed:
    """An image network that takes the levels of pixels and gives packed codes, in eval mode."""
    return Packed(network, settings, PIXEL_SCALE, PIXEL_BIAS).eval()


def to_onnx(network: Packed) -> bytes:
    """The content of the ONNX file of a network, in float32."""
    graph = to_graph(network, network.settings["image_size"])
    return _content(graph, network.settings | {"precision": "float32"})


def converted(model: Model, precision: str, images: np.ndarray) -> bytes:
    """The content of the file of a float32 model in another precision: "float16" halves the file, and numbers are
    computed in float32; "int8" computes in whole numbers, with ranges measured on images uint8 [n, S, S, 3].

    UserError: a weight is too large for float16, or there is no image for int8.
    """
    graph = onnx.load_from_string(model.content)
    if precision == "float16":
        store_halves(graph)
    elif len(images):
        graph = quantised(graph, images[evenly(len(images), NUM_CALIBRATION)])
    else:
        raise UserError(f"--precision {precision}: the dataset of the run was not found; name images with --images.")
    return _content(graph, model.settings | {"precision": precision})


def differing_bits(network: Packed, model: Model, images: np.ndarray) -> np.ndarray:
    """How many bits differ between torch and onnxruntime for images uint8 [n, S, S, 3]: int64 [n]."""
    result = np.zeros(len(images), dtype=np.int64)
    for start in range(0, len(images), 32):
        batch = images[start : start + 32]
        with torch.inference_mode():
            own = network(torch.from_numpy(batch))[0].numpy()
        result[start : start + 32] = np.bitwise_count(own ^ model.codes(batch)).sum(1)
    return result


def write_model(options: Namespace) -> None:
    """Write the file, as the flags of `python -m search export` say, and print how far it agrees with torch."""
    output: Path = options.output
    network = packed(*load_network(options.run, options.code_length))
    model = Model.from_bytes(to_onnx(network), str(output), "cpu")
    settings, size = read_config(options.run)["settings"], (model.image_size, model.shorter_side)
    images = sample_images(settings, *size, NUM_COMPARED, options.images or [], options.max_pixels)
    if options.precision != "float32":
        model = Model.from_bytes(converted(model, options.precision, images), str(output), "cpu")
    write_file(output, lambda file: file.write(model.content), "-o")
    print(f"Written to {output} ({len(model.content) / 1e6:.1f} MB)")
    if not len(images):
        print("Not compared with torch: the dataset of the run was not found; name images with --images.")
        return
    differing = differing_bits(network, model, images)
    bits, some = differing.mean() / model.code_length, np.count_nonzero(differing) / len(images)
    print(f"Compared with torch on {len(images):,} images: {bits:.4%} of the bits differ, in {some:.2%} of the images")


def _content(graph: onnx.ModelProto, settings: dict[str, Any]) -> bytes:
    """The file of a graph; its fingerprint is of the settings and of all numbers in the graph."""
    text = json.dumps(settings)
    digest = hashlib.sha256(text.encode())
    for value in sorted(graph.graph.initializer, key=lambda value: value.name):
        array = numpy_helper.to_array(value)
        digest.update(f"\n{value.name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    metadata = {"format": FORMAT, "decoding": str(DECODING), "settings": text, "fingerprint": digest.hexdigest()}
    onnx.helper.set_model_props(graph, metadata)
    return sealed(graph.SerializeToString(deterministic=True))
