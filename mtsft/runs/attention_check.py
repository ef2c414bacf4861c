"""Before a run: does the attention kernel compute on this device what the plain one does?"""

import jax

from mtsft.errors import InputError
from mtsft.model.attention.compare import ALLOWED, distance_to_plain
from mtsft.model.attention.kernels import KERNELS
from mtsft.model.transformer import Model


def check_attention(model: Model) -> None:
    """Compares the kernel of a model with the plain one on the first device of this process, where it is not that.

    It takes a few seconds, most of them for compiling. What a chip, a driver and a version of JAX make of a kernel
    cannot be known beforehand.

    Args:
        model: on its platform; see `Model.on`.

    Raises:
        InputError: the two differ by more than rounding, or the kernel does not compile.
    """
    name, dtype = model.arch.attention_kernel, model.arch.dtype
    if not KERNELS[name].is_checked:
        return
    device = jax.local_devices()[0]
    advice = f"on {device.device_kind} with jax {jax.__version__}; set model.attention_kernel='plain', or another"
    try:
        with jax.default_device(device):
            error = distance_to_plain(KERNELS[name], model.heads, model.scores, dtype, model.rows.branch)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as failure:
        first = str(failure).strip().splitlines()[0][:200]
        raise InputError(f"the attention kernel {name!r} does not compile ({first}) {advice}") from failure
    if error > ALLOWED[dtype]:
        raise InputError(f"the attention kernel {name!r} is off by {error:.1e} from the plain one {advice}")
