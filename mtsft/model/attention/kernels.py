"""The table of kernels that attend over whole rows, and the choice among them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
from jax.sharding import PartitionSpec as P

from mtsft.errors import InputError
from mtsft.model.attention import cudnn, flash_gpu, flash_tpu, splash
from mtsft.model.attention.blocked import blocked_attend
from mtsft.model.attention.flash import flash_attend
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.plain import tree_attend
from mtsft.model.attention.rows import ANY_ROWS, Heads, Rows
from mtsft.model.capability import too_old
from mtsft.model.shards import Shards

LAYOUTS = ("chains", "trees")  # "trees": rows whose trees may branch
AUTO = "auto"
PLAIN = "plain"

# (query (B, L, H, K), key (B, L, G, K), value (B, L, G, K), AttentionLayout, Scores, window) -> (B, L, H, K), under
# `mask.tree_mask`, in the dtype of query. window: None, a number, or a traced number. What a query that sees nothing
# gets is finite.
Attend = Callable[..., jax.Array]


def _never(heads: Heads, rows: Rows) -> str:
    return ""


@dataclass(frozen=True)
class Kernel:
    """A function that attends, and where it may.

    Attributes:
        function: see Attend.
        platforms: of JAX, as "cpu", "gpu", "tpu"; None for all.
        layouts: of LAYOUTS.
        dtypes: of queries, keys and values, by name.
        refuses: why it cannot attend with some heads over some rows, as a clause about it; "" where it can.
        each_device: whether a device must be given its own rows and heads, as the compiler cannot cut the function.
        takes_most_trees: whether the function has an argument most_trees, `Rows.most_trees`.
        is_checked: whether a run first compares it with the plain one, as it depends on the chip and on JAX.
    """

    function: Attend
    platforms: tuple[str, ...] | None
    layouts: tuple[str, ...]
    dtypes: tuple[str, ...]
    refuses: Callable[[Heads, Rows], str] = _never
    each_device: bool = False
    takes_most_trees: bool = False
    is_checked: bool = False

    def misfit(self, platform: str, layout: str, dtype: str, heads: Heads | None = None, rows: Rows = ANY_ROWS) -> str:
        """Why it cannot attend there, as a clause about it; "" where it can."""
        if self.platforms is not None and platform not in self.platforms:
            return f"is for {' and '.join(self.platforms)}"
        if layout not in self.layouts:
            return f"is for {' and '.join(self.layouts)} alone"
        if dtype not in self.dtypes:
            return f"computes in {' or '.join(self.dtypes)}"
        return self.refuses(heads, rows) if heads else ""

    def fits(self, platform: str, layout: str, dtype: str, heads: Heads | None = None, rows: Rows = ANY_ROWS) -> bool:
        """Whether it can attend there."""
        return not self.misfit(platform, layout, dtype, heads, rows)


def _splash_refuses(heads: Heads, rows: Rows) -> str:
    if splash.MISSING:
        return f"is not there: {splash.MISSING}"
    if heads.traced_window:
        return "needs one window for all layers of a scan: set model.scan_layers=False"
    return ""


def _cudnn_refuses(heads: Heads, rows: Rows) -> str:
    if cudnn.MISSING:
        return f"is not there: {cudnn.MISSING}"
    if jax.__version_info__ < cudnn.OFFSETS_RIGHT:
        needed = ".".join(map(str, cudnn.OFFSETS_RIGHT))
        return f"is wrong with grouped-query heads in jax {jax.__version__}, and right from {needed} on"
    if capability := too_old(cudnn.CAPABILITY):
        return capability
    if heads.softcap or heads.window:
        return "has neither a soft cap nor sliding windows"
    if heads.head_dim > cudnn.MAX_HEAD_DIM or heads.head_dim % 8:
        return f"takes head dims that are multiples of 8 up to {cudnn.MAX_HEAD_DIM}, not {heads.head_dim}"
    return "" if rows.most_trees else "needs to know how many dialogues a row holds at most"


def _pallas_tpu_refuses(heads: Heads, rows: Rows) -> str:
    if flash_tpu.MISSING:
        return f"is not there: {flash_tpu.MISSING}"
    width = heads.count // heads.groups * heads.head_dim
    if width > flash_tpu.MAX_GROUP_WIDTH:
        return f"takes groups of heads of up to {flash_tpu.MAX_GROUP_WIDTH} numbers, not {width}"
    return ""


def _pallas_gpu_refuses(heads: Heads, rows: Rows) -> str:
    if flash_gpu.MISSING:
        return f"is not there: {flash_gpu.MISSING}"
    if heads.head_dim > flash_gpu.MAX_HEAD_DIM:
        return f"takes head dims up to {flash_gpu.MAX_HEAD_DIM}, not {heads.head_dim}"
    return too_old(flash_gpu.CAPABILITY)


_BOTH = ("float32", "bfloat16")

# "auto" takes the first that fits.
KERNELS = {
    "pallas_tpu": Kernel(
        partial(flash_attend, flash_tpu.TpuFlash()),
        ("tpu",),
        LAYOUTS,
        _BOTH,
        _pallas_tpu_refuses,
        each_device=True,
        is_checked=True,
    ),
    "pallas_gpu": Kernel(
        partial(flash_attend, flash_gpu.GpuFlash()),
        ("gpu",),
        LAYOUTS,
        _BOTH,
        _pallas_gpu_refuses,
        each_device=True,
        is_checked=True,
    ),
    "cudnn": Kernel(
        cudnn.cudnn_attend,
        ("gpu",),
        ("chains",),
        ("bfloat16",),
        _cudnn_refuses,
        each_device=True,
        takes_most_trees=True,
        is_checked=True,
    ),
    "splash": Kernel(
        splash.splash_attend, ("tpu",), ("chains",), _BOTH, _splash_refuses, each_device=True, is_checked=True
    ),
    "blocked": Kernel(blocked_attend, ("cpu",), LAYOUTS, _BOTH, each_device=True),
    PLAIN: Kernel(tree_attend, None, LAYOUTS, _BOTH),
}


def choose_kernel(
    platform: str,
    layout: str,
    dtype: str,
    name: str = AUTO,
    heads: Heads | None = None,
    rows: Rows = ANY_ROWS,
) -> str:
    """The name of the kernel that attends there; one that is named is never replaced by another.

    Args:
        platform: of JAX.
        layout: one of LAYOUTS.
        dtype: of the computation, by name.
        name: of KERNELS, or "auto" for the first that fits.
        heads: what attends; None for what every kernel can.
        rows: what is known of the rows.

    Raises:
        InputError: for another name, or where nothing, or not the named one, fits.
    """
    if name not in (AUTO, *KERNELS):
        raise InputError(f"model.attention_kernel={name!r}: use one of {', '.join((AUTO, *KERNELS))}")
    where = f"rows of {layout} in {dtype} on {platform}"
    if name != AUTO:
        if why := KERNELS[name].misfit(platform, layout, dtype, heads, rows):
            raise InputError(
                f"model.attention_kernel={name!r} does not attend over {where}: it {why}; use {AUTO!r} or another"
            )
        return name
    for each, kernel in KERNELS.items():
        if kernel.fits(platform, layout, dtype, heads, rows):
            return each
    raise InputError(f"model.attention_kernel={AUTO!r}: there is no kernel for {where}; there are {', '.join(KERNELS)}")


def attend_on(shards: Shards, kernel: Kernel, rows: Rows = ANY_ROWS) -> Attend:
    """A kernel's function on the devices that have parts of the rows: of the heads, too, where that divides them."""
    function = partial(kernel.function, most_trees=rows.most_trees) if kernel.takes_most_trees else kernel.function
    if not kernel.each_device or shards.mesh is None:
        return function

    def attend(query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, layout, scores, window=None):
        is_traced = isinstance(window, jax.Array)
        traced = (window,) if is_traced else ()

        def local(query, key, value, layout, *traced):
            return function(query, key, value, layout, scores, *(traced or (window,)))

        tensor = shards.tensor_axis(query_BxLxHxK.shape[2], key_BxLxGxK.shape[2])
        heads = P(shards.rows, None, tensor, None)
        slots = AttentionLayout(*(P(shards.rows, None),) * len(layout))
        each = shards.each(local, (heads, heads, heads, slots, *(P() for _ in traced)), heads)
        return each(query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, layout, *traced)

    return attend
