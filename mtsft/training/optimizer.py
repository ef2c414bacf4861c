"""Optimizers, schedules and learning rates by name; built at learning rate 1, so that the step owns the schedule.

A step that is skipped leaves the optimizer's own counters as they were; the learning rate follows the step. Nothing
here depends on whether layers are stacked on a leading axis or unrolled, {"layers": {0: ...}}, nor on which part of
the model's parameters is trained.
"""

import json
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mtsft.errors import InputError, one_line
from mtsft.model.parameters import are_stacked, name_of

SCHEDULES = ("constant", "linear", "cosine", "wsd")
OPTIMIZERS = ("adamw", "adafactor", "lion", "muon")
_DECAYED = ("kernel", "embedding", "lora_a", "lora_b")  # matrices; norms' scales and biases are left alone


def learning_rate_schedule(
    name: str, peak: float, steps: int, warmup_steps: int, end_factor: float, decay_steps: int
) -> Callable:
    """Linear warm-up from 0 to `peak`, then what `name` says until `steps`; step -> float32 scalar.

    Step 0 takes the first warm-up value above 0. "constant" stays at the peak; "linear" and "cosine" (SGDR: Loshchilov
    and Hutter 2017, arXiv:1608.03983) fall to `end_factor * peak` at `steps`; "wsd" (warm-up, stable, decay: Hu et al.
    2024, arXiv:2404.06395, section 4; its linear form: Hägele et al. 2024, arXiv:2405.18392) stays at the peak and
    falls as far over the last `decay_steps`, which the others do not read. Raises InputError for another name.
    """
    warmup_steps = min(warmup_steps, steps)
    length, end = max(steps - warmup_steps, 1), end_factor * peak
    if name == "constant":
        schedule = optax.constant_schedule(peak)
    elif name == "linear":
        schedule = optax.linear_schedule(peak, end, length)
    elif name == "cosine":
        schedule = optax.cosine_decay_schedule(peak, length, alpha=end_factor)
    elif name == "wsd":
        decay_steps = min(decay_steps, length)
        schedule = optax.linear_schedule(peak, end, decay_steps, transition_begin=length - decay_steps)
    else:
        raise InputError(f"train.schedule={name!r}: use one of {', '.join(SCHEDULES)}")
    if warmup_steps:
        warm = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
        schedule = optax.join_schedules([warm, schedule], [warmup_steps])
    return lambda step: jnp.asarray(schedule(step), jnp.float32)


def build_optimizer(
    name: str, *, clip_norm: float, weight_decay: float, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """A gradient transformation whose updates are to be scaled by the learning rate.

    Gradients are clipped to the global norm `clip_norm` first (0 for no clipping); weight decay is decoupled, and
    scaled by the learning rate too. Raises InputError for another name.

    "adamw": Loshchilov and Hutter 2019, arXiv:1711.05101; its weight decay applies to matrices alone, see decay_mask.
    "adafactor": Shazeer and Stern 2018, arXiv:1804.04235: second moments of large matrices by row and column, none of
    the first, so that `b1` is not read, nor `b2` and `eps`, for which the paper has its own. Steps are absolute, as
    AdamW's are, and not relative to the parameter (section 8), which would hold back what starts at 0, such as lora_b.
    "lion": Chen et al. 2023, arXiv:2302.06675; its updates are signs, so that it wants a learning rate 3 to 10 times
    smaller than AdamW's and a weight decay as much larger (section 5).
    "muon": Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, for the kernels of the layers, Adam for the
    rest; scaled to the size of AdamW's updates, so that one learning rate serves both (Liu et al. 2025,
    arXiv:2502.16982, section 2.2); its weight decay applies to the matrices it moves.
    """
    if name == "adamw":
        rule = optax.adamw(1.0, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask)
    elif name == "adafactor":
        rule = optax.adafactor(
            1.0, multiply_by_parameter_scale=False, weight_decay_rate=weight_decay, weight_decay_mask=decay_mask
        )
        rule = _each_layer_alone(rule)
    elif name == "lion":
        rule = optax.lion(1.0, b1=b1, b2=b2, weight_decay=weight_decay, mask=decay_mask)
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


def state_specs(optimizer: optax.GradientTransformation, opt_state, params, specs, replicated):
    """Where each array of an optimizer's state lies: a moment of a parameter's shape as the parameter, others whole.

    opt_state, params: trees of arrays or shapes. specs: as params, a PartitionSpec or a NamedSharding each.
    replicated: the one of an array that lies whole on every device, which also takes Adafactor's rows and columns.
    """

    def beside_parameter(leaf, param, spec):
        if isinstance(leaf, optax.MaskedNode):  # stands for a parameter that a rule does not touch
            return leaf
        return spec if leaf.shape == param.shape else replicated

    # optax says which leaves of its state belong to parameters.
    return optax.tree.map_params(
        optimizer,
        beside_parameter,
        opt_state,
        params,
        specs,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )


def learning_rate_factors(groups: str, params):
    """What the learning rate of each parameter is multiplied by: a tree like `params` of Python floats.

    groups: a JSON object of regular expressions and factors, such as '{"embed": 0.1, "attention/(query|key)": 0.5}'.
    The first that is found in a parameter's name counts, 1 where none is; "" for all 1. Raises
    InputError for anything else, and for an expression that decides over no parameter.
    """
    key = f"train.learning_rate_groups={one_line(groups, 100)!r}"
    try:
        pairs = json.loads(groups, object_pairs_hook=tuple, parse_int=float) if groups else ()
    except (json.JSONDecodeError, RecursionError):
        pairs = None
    if not isinstance(pairs, tuple) or not all(type(factor) is float for _, factor in pairs):
        raise InputError(f'{key}: write one JSON object of regular expressions and numbers, such as {{"embed": 0.1}}')
    rules = []
    for pattern, factor in pairs:
        if not (factor >= 0 and math.isfinite(factor)):
            raise InputError(f"{key}: {pattern!r} has the factor {factor}; use a number of at least 0")
        try:
            rules.append((re.compile(pattern), factor))
        except (re.error, OverflowError) as error:
            raise InputError(f"{key}: {pattern!r} is no regular expression ({error}); correct it") from None
    names, used = set(), set()

    def factor_of(path, _):
        name = name_of(path)
        names.add(name)
        for i, (rule, factor) in enumerate(rules):
            if rule.search(name):
                used.add(i)
                return factor
        return 1.0

    factors = jax.tree_util.tree_map_with_path(factor_of, params)
    for i, (rule, _) in enumerate(rules):
        if i not in used:
            raise InputError(
                f"{key}: {one_line(rule.pattern, 50)!r} fits no parameter, or none that is left by those before it; "
                f"change it or leave it out; the parameters are {one_line(', '.join(sorted(names)), 1000)}"
            )
    return factors


def _each_layer_alone(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """A rule that takes every array for one parameter, mapped over the axis of stacked layers; in float32."""

    def axes_of(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: 0 if _name(path[0]) == "layers" else None, params)

    def axes_of_state(state, axes):
        return optax.tree.map_params(rule, lambda _, axis: axis, state, axes, transform_non_params=lambda _: None)

    def init(params):
        params = optax.tree.cast(params, jnp.float32)  # moments take the dtype of what they are told is the parameter
        if not _has_stacked_layers(params):
            return rule.init(params)
        axes = axes_of(params)
        state_axes = axes_of_state(jax.eval_shape(rule.init, params), axes)
        return jax.vmap(rule.init, in_axes=(axes,), out_axes=state_axes)(params)

    def update(updates, state, params=None):
        params = optax.tree.cast(params, jnp.float32)
        if not _has_stacked_layers(params):
            return rule.update(updates, state, params)
        axes = axes_of(params)
        state_axes = axes_of_state(state, axes)
        mapped = jax.vmap(rule.update, in_axes=(axes, state_axes, axes), out_axes=(axes, state_axes))
        return mapped(updates, state, params)

    return optax.GradientTransformation(init, update)


def _has_stacked_layers(params) -> bool:
    return isinstance(params, dict) and "layers" in params and are_stacked(params)  # optax also asks with no dict


def _muon_dimensions(params):
    """Which parameters Muon takes: the layers' kernels, whose last two axes are a matrix.

    Not lora_a and lora_b: what acts is their product, and to orthogonalise the factors does not orthogonalise it.
    """

    def dimensions(path, leaf):
        is_layer_kernel = _name(path[0]) == "layers" and _name(path[-1]) == "kernel"
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if is_layer_kernel else None

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _name(entry) -> str:
    return str(getattr(entry, "key", entry))
