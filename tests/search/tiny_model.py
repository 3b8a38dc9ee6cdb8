"""A tiny model file, made in a millisecond without torch: random sums of the mean colours of the four quarters.

It is a file of `python -m search export` in every respect but its network (search/model.py).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from data.decode import DECODING
from search.model import FORMAT, sealed

SIZE, BITS = 32, 12


def tiny_model(code_length: int = BITS, image_size: int = SIZE, seed: int = 0) -> bytes:
    """The content of a model file: uint8 images [N, S, S, 3] → codes uint8 [N, ceil(K/8)], outputs float32 [N, K].

    Models of different seeds make different codes and have different fingerprints. Images of 32 pixels or more give
    many different codes; equal images, equal codes.
    """
    random = np.random.default_rng(seed)
    width = -(-code_length // 8)
    weights = random.normal(size=(12, code_length)).astype(np.float32)
    numbers = {
        "weights": weights,
        "bias": -128 * weights.sum(axis=0),  # mean grey lies at 0
        "zero": np.float32(0),
        "padding": np.array([0, 0, 0, 8 * width - code_length]),
        "bytes": np.array([-1, width, 8]),
        "values": np.array([128, 64, 32, 16, 8, 4, 2, 1], np.int32),
        "last": np.array([2]),
    }
    half = [image_size // 2] * 2
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["channels_first"], ["means"], kernel_shape=half, strides=half),
        helper.make_node("Flatten", ["means"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["outputs"]),
        helper.make_node("GreaterOrEqual", ["outputs", "zero"], ["signs"]),
        helper.make_node("Cast", ["signs"], ["bits"], to=TensorProto.INT32),
        helper.make_node("Pad", ["bits", "padding"], ["padded"]),
        helper.make_node("Reshape", ["padded", "bytes"], ["grouped"]),
        helper.make_node("Mul", ["grouped", "values"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "last"], ["sums"], keepdims=0),
        helper.make_node("Cast", ["sums"], ["codes"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", image_size, image_size, 3])],
        [
            helper.make_tensor_value_info("codes", TensorProto.UINT8, ["N", width]),
            helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["N", code_length]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    settings = {
        "backbone": "tiny",
        "code_length": code_length,
        "image_size": image_size,
        "dataset": "folder",
        "method": "main_mmasia",
        "precision": "float32",
    }
    helper.set_model_props(
        model,
        {
            "format": FORMAT,
            "settings": json.dumps(settings),
            "fingerprint": hashlib.sha256(weights.tobytes()).hexdigest(),
            "decoding": str(DECODING),
        },
    )
    onnx.checker.check_model(model)
    return sealed(model.SerializeToString())


def write_tiny_model(path: Path, code_length: int = BITS, seed: int = 0) -> Path:
    """`tiny_model` as a file; returns its path."""
    path.write_bytes(tiny_model(code_length, seed=seed))
    return path
