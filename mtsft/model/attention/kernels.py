"""The table of kernels that attend over whole rows, and the choice among them."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from mtsft.errors import InputError
from mtsft.model.attention.blocked import blocked_attend
from mtsft.model.attention.plain import tree_attend

LAYOUTS = ("chains", "trees")  # "trees": rows whose trees may branch
AUTO = "auto"

# (query (B, L, H, K), key (B, L, G, K), value (B, L, G, K), AttentionLayout, Scores, window) -> (B, L, H, K), under
# `mask.tree_mask`, in the dtype of query. window: None, a number, or a traced number.
Attend = Callable[..., jax.Array]


@dataclass(frozen=True)
class Kernel:
    """A function that attends, and where it may.

    Attributes:
        function: see Attend.
        platforms: of JAX, as "cpu", "gpu", "tpu"; None for all.
        layouts: of LAYOUTS.
        dtypes: of queries, keys and values, by name.
    """

    function: Attend
    platforms: tuple[str, ...] | None
    layouts: tuple[str, ...]
    dtypes: tuple[str, ...]

    def fits(self, platform: str, layout: str, dtype: str) -> bool:
        """Whether it can attend there."""
        anywhere = self.platforms is None
        return (anywhere or platform in self.platforms) and layout in self.layouts and dtype in self.dtypes


# "auto" takes the first that fits.
KERNELS = {
    "blocked": Kernel(blocked_attend, ("cpu",), LAYOUTS, ("float32", "bfloat16")),
    "plain": Kernel(tree_attend, None, LAYOUTS, ("float32", "bfloat16")),
}


def choose_kernel(platform: str, layout: str, dtype: str, name: str = AUTO) -> str:
    """The name of the kernel that attends there; one that is named is never replaced by another.

    Args:
        platform: of JAX.
        layout: one of LAYOUTS.
        dtype: of the computation, by name.
        name: of KERNELS, or "auto" for the first that fits.

    Raises:
        InputError: for another name, or where nothing, or not the named one, fits.
    """
    if name not in (AUTO, *KERNELS):
        raise InputError(f"model.attention_kernel={name!r}: use one of {', '.join((AUTO, *KERNELS))}")
    where = f"rows of {layout} in {dtype} on {platform}"
    if name != AUTO:
        if not KERNELS[name].fits(platform, layout, dtype):
            raise InputError(f"model.attention_kernel={name!r} does not attend over {where}; use {AUTO!r} or another")
        return name
    for each, kernel in KERNELS.items():
        if kernel.fits(platform, layout, dtype):
            return each
    raise InputError(f"model.attention_kernel={AUTO!r}: there is no kernel for {where}; there are {', '.join(KERNELS)}")
