"""Optimizers and schedules, from optax; built at learning rate 1, so that the step owns the schedule.

A step that is skipped leaves the optimizer's own counters as they were; the learning rate follows the step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mtsft.errors import InputError

OPTIMIZERS = ("adamw", "muon")
_DECAYED = ("kernel", "embedding")  # matrices; norms' scales are left alone


def learning_rate_schedule(peak: float, steps: int, warmup_steps: int, end_factor: float) -> Callable:
    """Linear warm-up from 0 to `peak`, then a cosine to `end_factor * peak` at `steps`; step -> float32 scalar.

    Step 0 takes the first warm-up value above 0. SGDR's cosine: Loshchilov and Hutter 2017, arXiv:1608.03983.
    """
    warmup_steps = min(warmup_steps, steps)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        warm = (step + 1) / max(warmup_steps, 1)
        progress = jnp.clip((step - warmup_steps) / max(steps - warmup_steps, 1), 0, 1)
        cosine = end_factor + (1 - end_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return peak * jnp.where(step < warmup_steps, warm, cosine)

    return schedule


def build_optimizer(
    name: str, *, clip_norm: float, weight_decay: float, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """A gradient transformation whose updates are to be scaled by the learning rate.

    AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101; its weight decay applies to matrices alone. Muon (Jordan et
    al. 2024, https://kellerjordan.github.io/posts/muon) for the matrices of the layers, Adam for the rest; scaled to
    the size of AdamW's updates, so that one learning rate serves both (Liu et al. 2025, arXiv:2502.16982, section
    2.2); its weight decay applies to the matrices it moves. Gradients are clipped to the global norm `clip_norm`
    first (0 for no clipping). Raises InputError for another name.
    """
    if name == "adamw":
        rule = optax.adamw(1.0, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask)
    elif name == "muon":
        rule = optax.contrib.muon(
            1.0,
            weight_decay=weight_decay,
            consistent_rms=0.2,
            adam_b1=b1,
            adam_b2=b2,
            muon_weight_dimension_numbers=_muon_dimensions,
        )
    else:
        raise InputError(f"train.optimizer={name!r}: use one of {', '.join(OPTIMIZERS)}")
    return optax.chain(optax.clip_by_global_norm(clip_norm), rule) if clip_norm else rule


def decay_mask(params):
    """True for what weight decay applies to: by name, since stacked norms have two axes as well."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path[-1]) in _DECAYED, params)


def _muon_dimensions(params):
    """Which parameters Muon takes: the layers' kernels, whose last two axes are a matrix."""

    def dimensions(path, leaf):
        is_layer_kernel = _name(path[0]) == "layers" and _name(path[-1]) == "kernel"
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if is_layer_kernel else None

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _name(entry) -> str:
    return str(getattr(entry, "key", entry))
