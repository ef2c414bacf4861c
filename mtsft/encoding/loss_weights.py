"""Which words are trained, and how much each counts: the responses of a dialogue and the weights of their tokens."""

from mtsft.config import DataConfig
from mtsft.dialogue.schema import ROLES, Dialogue, path_from_root
from mtsft.encoding.weight_rules import weight_rules
from mtsft.errors import InputError

PER = ("token", "turn", "dialogue")
_OF_THE_ASSISTANT = ("all", "first", "last")


def check_weights(config: DataConfig) -> None:
    """Raises InputError for a value of `responses`, `weigh_per` or `weight_rules` that is none of theirs."""
    if config.responses not in _OF_THE_ASSISTANT and not set(_roles(config.responses)) <= set(ROLES):
        raise InputError(
            f"data.responses={config.responses!r}: use 'all', 'first', 'last', or roles out of {', '.join(ROLES)}"
        )
    weight_rules(config.weight_rules)
    if config.weigh_per not in PER:
        raise InputError(f"data.weigh_per={config.weigh_per!r}: use one of {', '.join(PER)}")


def response_weights(dialogue: Dialogue, config: DataConfig) -> dict[int, float]:
    """{message index: weight} of the responses, in order, as `responses` and `train_tool_calls` choose them.

    A message's own weight, times what `weight_rules` say of whole replies, is what each of its tokens weighs, but for
    what its spans and the rules for a part of it say; `weigh_per` shares it out later, when the tokens are known. In a
    tree of replies "first" and "last" are so on every path.
    """
    return weight_rules(config.weight_rules).of_replies(dialogue, chosen_responses(dialogue, config))[0]


def chosen_responses(dialogue: Dialogue, config: DataConfig) -> dict[int, float]:
    """{message index: its own weight} of the responses, before any rule."""
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
