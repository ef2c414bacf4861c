"""Which words count, and how much: the responses of a dialogue and the weights of their tokens."""

from dataclasses import dataclass

from mtsft.dialogue.schema import ROLES, Dialogue
from mtsft.errors import InputError

PER = ("token", "turn", "dialogue")


@dataclass(frozen=True)
class LossWeights:
    """Which messages are responses, and what their tokens weigh.

    responses: "all" of the assistant's; only the "first" or the "last" of them (in a tree of replies, on every path);
    or every message of the roles named ("assistant,tool"). reasoning, tool_calls: whether the reasoning inside a
    response, and the responses that call tools, are trained. weigh_per: "token" gives each token the weight of its
    message; "turn" shares that weight out among the tokens of a response; "dialogue" shares it out among all
    responses' tokens. Raises InputError for another value.
    """

    responses: str = "all"
    reasoning: bool = True
    tool_calls: bool = True
    weigh_per: str = "token"

    def __post_init__(self):
        if self.responses not in ("all", "first", "last") and not set(self._roles()) <= set(ROLES):
            raise InputError(
                f"data.responses={self.responses!r}: use 'all', 'first', 'last', or roles out of {', '.join(ROLES)}"
            )
        if self.weigh_per not in PER:
            raise InputError(f"data.weigh_per={self.weigh_per!r}: use one of {', '.join(PER)}")

    def _roles(self) -> tuple[str, ...]:
        if self.responses in ("all", "first", "last"):
            return ("assistant",)
        return tuple(role.strip() for role in self.responses.split(","))

    def weights(self, dialogue: Dialogue) -> dict[int, float]:
        """{message index: weight} of the responses, in order."""
        if self.responses == "all" and self.tool_calls:
            said = enumerate(dialogue.messages)
            return {i: message.weight for i, message in said if message.role == "assistant" and message.weight > 0}
        roles = self._roles()
        found = {
            i: message.weight
            for i, message in enumerate(dialogue.messages)
            if message.role in roles
            and message.weight > 0
            and (self.tool_calls or not (message.fields and message.fields.get("tool_calls")))
        }
        if self.responses in ("first", "last") and found:
            if dialogue.parents is None:
                kept = {min(found) if self.responses == "first" else max(found)}
            else:
                above = {i: set(_ancestors(dialogue.parents, i)) & found.keys() for i in found}
                below = set().union(*above.values())
                kept = {i for i in found if not above[i]} if self.responses == "first" else found.keys() - below
            found = {i: weight for i, weight in found.items() if i in kept}
        return found


def _ancestors(parents: tuple[int, ...], message: int) -> list[int]:
    found = []
    while (message := parents[message]) >= 0:
        found.append(message)
    return found
