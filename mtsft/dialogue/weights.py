"""What a message counts: the keys that say so, each read in one way, or refused.

In every function `subject` is what an error begins with: the file, the line and the message that it is about.
"""

import json
from collections.abc import Collection, Mapping

from mtsft.dialogue.kinds import kind
from mtsft.errors import InputError, one_line

WEIGHTS = frozenset(("weight", "loss_weight", "train", "training", "loss"))  # the keys that say what a message counts
# Keys that say what is trained in ways that are not read here: to pass over one would train something else.
MASKS = ("train_detail", "mask", "loss_mask", "loss_scale", "train_on_input", "train_on_inputs", "train_on_prompt")
_RARE_WEIGHTS = WEIGHTS - {"weight"}
RANGE = (1e-6, 1e6)  # of a weight: least and greatest, 0 apart: sums of them stay exact enough in float32


def refuse_masks(record: Mapping, subject: str, read: Collection[str] = ()) -> None:
    """Raises InputError for keys of other trainers that choose what is trained, where they say more than nothing.

    read: those that are not refused here.
    """
    for key in MASKS:
        if key in read:
            continue
        value = record.get(key)
        # A mask of 0, or false, says something: to some trainers, that nothing is trained.
        usual = value is False if key.startswith("train") else key == "loss_scale" and _is_one(value)
        if not (usual or value is None or value == "" or value == []):
            raise InputError(
                f"{subject} has {key!r}, which says what is trained in a way that is not read here; give messages a "
                "'weight' (0 for context) or 'spans' in its place, or use data.responses"
            )


def refuse_weight_of_all(record: Mapping, subject: str) -> None:
    """Raises InputError for a weight beside messages, each of which has its own; metadata of the name is none."""
    for key in sorted(WEIGHTS & record.keys()):
        value = record[key]
        of_number = key in ("weight", "loss_weight") and isinstance(value, int | float) and not _is_one(value)
        if of_number or (value is False and key in ("train", "training", "loss")):
            raise InputError(
                f"{subject} has {key!r}, and what is trained is said of each message; give every message its own, or "
                "leave the dialogue out"
            )


def _is_one(value: object) -> bool:
    return value.__class__ in (int, float) and value == 1


def weight_of(record: dict, subject: str) -> float:
    """The one weight that a message states, under any of its names; 1 if it states none."""
    if WEIGHTS.isdisjoint(record):
        return 1.0
    if _RARE_WEIGHTS.isdisjoint(record) and (weight := record["weight"]).__class__ in (int, float) and weight == 1:
        return 1.0
    stated = {}
    for key in ("weight", "loss_weight"):
        if (weight := record.get(key)) is None:
            continue
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number:
            raise InputError(
                f"{subject} has a {key} that is {kind(weight)} ({one_line(json.dumps(weight, default=str), 40)}); "
                "write a number, or leave it out"
            )
        if not (weight == 0 or RANGE[0] <= weight <= RANGE[1]):
            raise InputError(
                f"{subject} has {key} {one_line(weight, 40)}; use 0, a number from {RANGE[0]:g} to "
                f"{RANGE[1]:g}, or leave it out"
            )
        stated[key] = float(weight)
    trained = {key: record[key] for key in ("train", "training", "loss") if record.get(key) is not None}
    for key, value in trained.items():
        if not isinstance(value, bool):
            raise InputError(f"{subject} has '{key}' that is {kind(value)}; use true or false, or leave it out")
    if len({*stated.values()}) > 1 or len({*trained.values(), *(weight > 0 for weight in stated.values())}) > 1:
        given = ", ".join(f"{key} {json.dumps(value)}" for key, value in (stated | trained).items())
        raise InputError(f"{subject} contradicts itself ({given}); keep one of them")
    return next(iter(stated.values())) if stated else float(next(iter(trained.values()), 1.0))


def with_weight_of_parts(record: dict, content: object, subject: str) -> dict:
    """A message whose typed parts say what they count, with that as what the message counts: they must agree."""
    parts = content if isinstance(content, list) else []
    stated = {
        weight_of(part, f"{subject} part {number}") if not WEIGHTS.isdisjoint(part) else None
        for number, part in enumerate(parts, 1)
        if isinstance(part, dict)
    }
    for part in parts:
        if isinstance(part, dict):
            refuse_masks(part, f"{subject}: a part")
    if stated <= {None}:
        return record
    if len(stated) > 1:
        key = next(key for part in parts for key in part if key in WEIGHTS)
        raise InputError(
            f"{subject} has parts that differ in {key!r}, and a message is trained as a whole; give all its parts "
            "the same, or make it two messages"
        )
    weight = stated.pop()
    if not WEIGHTS.isdisjoint(record) and weight_of(record, subject) != weight:
        raise InputError(f"{subject} contradicts its parts, which weigh {weight:g}; keep one of them")
    return {key: value for key, value in record.items() if key not in WEIGHTS} | {"weight": weight}
