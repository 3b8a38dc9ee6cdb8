"""The npz file of codes."""

import io
import json
import time

import numpy as np

from search.code_file import num_codes, write_codes
from search.model import load_model
from tests.search.encode_small import read


def test_the_same_content_gives_the_same_bytes_at_any_time(run_folder, tmp_path, monkeypatch):
    model = load_model(run_folder)
    names = [f"{'folder/' * (number % 5)}{number}.png" for number in range(200)]
    codes = np.random.default_rng(1).integers(0, 256, (200, 2), dtype=np.uint8)
    written = []
    for year in (2001, 2031):
        now = time.mktime((year, 1, 2, 3, 4, 5, 0, 0, -1))
        monkeypatch.setattr(time, "time", lambda now=now: now)
        file = io.BytesIO()
        write_codes(file, names, codes, model, "request")
        written.append(file.getvalue())
    assert written[0] == written[1]
    (tmp_path / "codes.npz").write_bytes(written[0])
    content = read(tmp_path / "codes.npz")
    assert list(content) == ["codes", "names", "code_length", "settings", "fingerprint", "request"]
    assert list(content["names"]) == names and np.array_equal(content["codes"], codes)
    assert content["names"].dtype == f"<U{max(map(len, names))}" and content["codes"].dtype == np.uint8
    assert content["code_length"].dtype == np.int64 and int(content["code_length"]) == model.code_length
    assert json.loads(str(content["settings"])) == model.settings and str(content["fingerprint"]) == model.fingerprint
    assert num_codes(tmp_path / "codes.npz", "request") == 200
    assert num_codes(tmp_path / "codes.npz", "another") is None
    assert num_codes(tmp_path / "missing.npz", "request") is None


def test_pickled_objects_are_not_read(tmp_path):
    np.savez(tmp_path / "codes.npz", codes=np.array([print], dtype=object), request=np.array("request"))
    assert num_codes(tmp_path / "codes.npz", "request") is None
