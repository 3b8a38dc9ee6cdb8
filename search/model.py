"""A model as one ONNX file: uint8 images in, packed codes out. Needs no torch (`search.export` writes the file)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from data.decode import DECODING
from data.windows import shorter_side_for
from utils.errors import UserError
from utils.files import fits

FORMAT = "schn-onnx-1"
# The file ends in this entry of its metadata and 64 hexadecimal digits: the SHA-256 of all bytes before them. Protobuf
# allows an entry of a repeated field anywhere, also appended (https://protobuf.dev/programming-guides/encoding/#order).
_DIGITS = 64
_DIGEST_ENTRY = b"\x72\x4a\x0a\x06sha256\x12\x40"  # ModelProto.metadata_props (14): {1: "sha256", 2: 64 bytes}
_SETTINGS = {"code_length": int, "image_size": int, "dataset": str, "precision": str}


@dataclass(frozen=True)
class Model:
    """A network that is ready to encode; several threads may use it at once."""

    content: bytes  # the whole file
    where: str  # what messages call it
    code_length: int  # K, bits
    image_size: int  # S, the side of the square input in pixels
    settings: dict[str, Any]  # `modules.trained.SETTINGS`, and the precision
    fingerprint: str  # SHA-256 of the settings and all numbers; codes of equal fingerprints can be compared
    session: onnxruntime.InferenceSession

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Model:
        """Read a file of `python -m search export`; UserError as `from_bytes`, or the file cannot be read."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); name a file of `search export`.") from error
        return cls.from_bytes(content, str(path), device)

    @classmethod
    def from_bytes(cls, content: bytes, where: str, device: str = "auto") -> Model:
        """The model in the content of such a file; messages call it `where`.

        Raises:
            UserError: not such a file, damaged, of another version, or there is no such device.
        """
        if content[-_DIGITS - len(_DIGEST_ENTRY) : -_DIGITS] != _DIGEST_ENTRY:
            raise UserError(f"{where}: cut short, or not a file of `python -m search export`; export the model again.")
        if hashlib.sha256(memoryview(content)[:-_DIGITS]).hexdigest().encode() != content[-_DIGITS:]:
            raise UserError(f"{where}: damaged, it has changed since it was written; export the model again.")
        providers, options = _providers(device), onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only; they are raised, too
        # `encode_files` has a thread per processor; threads that share the work of one batch would wait for each other.
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(content, options, providers=providers)
            metadata = session.get_modelmeta().custom_metadata_map
            settings = json.loads(metadata.get("settings", "null"))
        except Exception as error:  # onnxruntime raises its own types, which have no common one
            raise UserError(
                f"{where}: cannot be read ({str(error).splitlines()[0]}); export the model again."
            ) from error
        own = (FORMAT, str(DECODING))
        if (metadata.get("format"), metadata.get("decoding")) != own or not fits(settings, _SETTINGS):
            raise UserError(f"{where}: written by another version of this program; export the model again.")
        bits, size = settings["code_length"], settings["image_size"]
        return cls(content, where, bits, size, settings, metadata["fingerprint"], session)

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side after Resize, before the central crop."""
        # A digit fills its image, so that evaluation does not crop it (data/digits.py).
        return self.image_size if self.settings["dataset"] == "digits" else shorter_side_for(self.image_size)

    def codes(self, images: np.ndarray) -> np.ndarray:
        """The codes of images, uint8 [N, S, S, 3] → uint8 [N, ceil(K/8)], in any number: each row depends on its image.

        Bit k of a code is bit 7 - k % 8 of byte k // 8, the order of `np.packbits`: 1 where U_image >= 0 (code +1), 0
        where it is negative (code -1). The unused bits after K are 0.

        Raises:
            UserError: an output of the network is not a number, or the memory is too small.
        """
        try:
            codes, outputs = self.session.run(("codes", "outputs"), {"images": images})
        except Exception as error:
            message = f"{self.where}: cannot encode {len(images)} images at once ({str(error).splitlines()[0]})."
            raise UserError(message) from error
        if not np.isfinite(outputs).all():
            raise UserError(f"{self.where}: an output of the network is not a number; use another model.")
        return np.asarray(codes)


def sealed(content: bytes) -> bytes:
    """A serialised ONNX model with its SHA-256 behind it, as `Model.from_bytes` wants it."""
    content += _DIGEST_ENTRY
    return content + hashlib.sha256(content).hexdigest().encode()


def _providers(device: str) -> list[Any]:
    """The providers of onnxruntime for a device."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: not a device; use auto, cpu or cuda.")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise UserError("--device cuda: onnxruntime has no CUDA here; install onnxruntime-gpu, or use --device cpu.")
    cuda = [("CUDAExecutionProvider", {"use_tf32": "0"})] if has_cuda and device != "cpu" else []
    return [*cuda, "CPUExecutionProvider"]
