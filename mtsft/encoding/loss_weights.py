"""Which words are trained, and how much each counts: the responses of a dialogue and the weights of their tokens."""

from mtsft.config import DataConfig
from mtsft.dialogue.schema import ROLES, Dialogue, path_from_root
from mtsft.errors import InputError

PER = ("token", "turn", "dialogue")
_OF_THE_ASSISTANT = ("all", "first", "last")


def check_weights(config: DataConfig) -> None:
    """Raises InputError for a value of `responses` or `weigh_per` that is none of theirs."""
    if config.responses not in _OF_THE_ASSISTANT and not set(_roles(config.responses)) <= set(ROLES):
        raise InputError(
            f"data.responses={config.responses!r}: use 'all', 'first', 'last', or roles out of {', '.join(ROLES)}"
        )
    if config.weigh_per not in PER:
        raise InputError(f"data.weigh_per={config.weigh_per!r}: use one of {', '.join(PER)}")


def response_weights(dialogue: Dialogue, config: DataConfig) -> dict[int, float]:
    """{message index: weight} of the responses, in order, as `responses` and `train_tool_calls` choose them.

    A message's own weight is what each of its tokens weighs; `weigh_per` shares it out later, when they are known. In
    a tree of replies "first" and "last" are so on every path.
    """
    if config.responses == "all" and config.train_tool_calls:
        messages = enumerate(dialogue.messages)
        return {i: message.weight for i, message in messages if message.role == "assistant" and message.weight > 0}
    roles = _roles(config.responses)
    weights = {
        i: message.weight
        for i, message in enumerate(dialogue.messages)
        if message.role in roles
        and message.weight > 0
        and (config.train_tool_calls or not (message.fields and message.fields.get("tool_calls")))
    }
    if config.responses in ("first", "last") and weights:
        first = config.responses == "first"
        if dialogue.parents is None:
            kept = {min(weights) if first else max(weights)}
        else:
            above = {i: weights.keys() & path_from_root(dialogue.parents, i)[:-1] for i in weights}
            below = set().union(*above.values())
            kept = {i for i in weights if not above[i]} if first else weights.keys() - below
        weights = {i: weight for i, weight in weights.items() if i in kept}
    return weights


def _roles(responses: str) -> tuple[str, ...]:
    if responses in _OF_THE_ASSISTANT:
        return ("assistant",)
    return tuple(role.strip() for role in responses.split(","))
