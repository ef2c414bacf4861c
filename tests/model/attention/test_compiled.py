"""The kernels as chips get them: compiled for TPUs, and lowered for GPUs, without one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from mtsft.model.attention.flash import flash_attend
from mtsft.model.attention.flash_gpu import GpuFlash
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.scores import Scores

FOR_TPU = Path(__file__).parent / "compile_for_tpu.py"
NO_CHIP = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",  # of this XLA, which are not all those of the other one
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_tpu_kernels_compile(topology):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, the compiler for TPUs, is not installed")
    done = subprocess.run(
        [sys.executable, FOR_TPU, topology], env=os.environ | NO_CHIP, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "compiled"


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")  # by JAX 0.12
@pytest.mark.parametrize("window", [None, 40, "traced"])
def test_the_gpu_kernels_lower_to_triton(window):
    kernels = GpuFlash()
    heads = [jax.ShapeDtypeStruct((2, 300, n, 64), jnp.bfloat16) for n in (4, 2, 2)]
    layout = AttentionLayout(*[jax.ShapeDtypeStruct((2, 300), jnp.int32)] * 3)

    def total(query, key, value, layout, traced):
        width = traced if window == "traced" else window
        return flash_attend(kernels, query, key, value, layout, Scores(0.125, 5.0), width).astype(jnp.float32).sum()

    function = jax.jit(jax.grad(total, (0, 1, 2)))
    card = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu"))
    with jax.sharding.use_abstract_mesh(card):
        traced = function.trace(*heads, layout, jax.ShapeDtypeStruct((), jnp.int32))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for name in ("forward_kernel", "query_kernel", "key_kernel"):
        assert name in text
    assert text.count("__gpu$xla.gpu.triton") == 3
