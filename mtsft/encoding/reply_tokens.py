"""Added tokens in the model's own words: a reply that writes "<tool_call>" emits that token, not its letters.

Whoever else writes a control token's text writes letters: nobody's words open a turn or end one. A model's reply is
another matter. Where its data has a call or a thought inside the text, the model is to emit, and servers parse, the
tokens that its tokenizer has for them. So in replies, those added tokens that the tokenizer does not call special are
tokens; special ones are letters everywhere, but for a pair of reasoning marks around a reply's first words. What stands
inside the arguments of a call is data, whose letters are letters too.
"""

import re
from collections.abc import Collection, Mapping

from mtsft.template.reasoning import ReasoningMarks
from mtsft.tokenizer.base import ControlToken

SAID = ("content", "reasoning_content")  # the fields of a message that are its words


class ReplyTokens:
    """The control tokens that a reply's words may hold.

    Args:
        controls: the tokenizer's, by text.
        ends: texts of those that end a turn or have a name (BOS, say), which are never a reply's words.
        marks: around reasoning; of a pair both are tokens, or neither.
        everywhere: False where only marks at the head of a reply are tokens.
    """

    def __init__(
        self,
        controls: Mapping[str, ControlToken],
        ends: Collection[str],
        marks: ReasoningMarks,
        everywhere: bool = True,
    ):
        pairs = [pair for pair in marks.pairs if all(mark in controls for mark in pair)]
        halves = {mark for pair in marks.pairs for mark in pair} - {mark for pair in pairs for mark in pair}
        allowed = [text for text, control in controls.items() if not control.special and text not in {*ends, *halves}]
        allowed = sorted(allowed if everywhere else [], key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, allowed))})" if allowed else "(?!)()")
        self._at_head = [pair for pair in pairs if not {*pair} <= {*allowed}]

    def cut(self, text: str, opened: str = "") -> list[str]:
        """A reply's words cut at the tokens that they hold: text at even places, the texts of tokens at odd ones.

        opened: what the context before the words ends with, if that is a reasoning mark and more.
        """
        for opening, closing in self._at_head:
            goes_on = bool(opened) and opened.startswith(opening)
            if closing in text and (goes_on or text.startswith(opening)):
                thought, _, after = text.removeprefix("" if goes_on else opening).partition(closing)
                head = self._pattern.split(thought) if goes_on else ["", opening, *self._pattern.split(thought)]
                return [*head, closing, *self._pattern.split(after)]
        return self._pattern.split(text)
