import numpy as np
from safetensors.numpy import save_file

from mtsft.interop.safetensors_io import read_header
from mtsft.interop.weights_digest import weights_digest

RNG = np.random.default_rng(0)
LARGE, SMALL = RNG.normal(size=(300, 400)).astype(np.float32), RNG.normal(size=7).astype(np.float32)


def digest(folder, tensors, **more):
    save_file(tensors, folder / "w.safetensors")
    return weights_digest(read_header(folder / "w.safetensors"), **more)


def test_every_name_shape_dtype_and_value_counts(tmp_path):
    first = digest(tmp_path, {"a": LARGE, "b": SMALL})
    assert digest(tmp_path, {"b": SMALL, "a": LARGE}) == first
    changed = LARGE.copy()
    changed[150, 201] += 1e-6
    others = [
        {"a": changed, "b": SMALL},
        {"a": LARGE, "c": SMALL},
        {"a": LARGE.reshape(400, 300), "b": SMALL},
        {"a": LARGE, "b": SMALL.astype(np.float16)},
        {"a": LARGE},
    ]
    assert len({first, *(digest(tmp_path, each) for each in others)}) == 6


def test_of_large_weights_blocks_of_every_tensor_count(tmp_path):
    first = digest(tmp_path, {"a": LARGE, "b": SMALL}, whole=0)
    assert first != digest(tmp_path, {"a": LARGE, "b": SMALL})
    for at in (0, 1023, 8000, LARGE.size - 1):  # 16 blocks of 1,024 numbers of 120,000, the ends among them
        changed = LARGE.copy()
        changed.reshape(-1)[at] += 1
        assert digest(tmp_path, {"a": changed, "b": SMALL}, whole=0) != first
    for at in range(7):  # a small one is read whole
        changed = SMALL.copy()
        changed[at] += 1
        assert digest(tmp_path, {"a": LARGE, "b": changed}, whole=0) != first
    another = LARGE * np.float32(1.0001)  # as further training changes it
    assert digest(tmp_path, {"a": another, "b": SMALL}, whole=0) != first
