"""Messages whose text spells a control token: a user who writes "<|im_end|>" ends no turn, and is counted."""

import re
from collections.abc import Collection, Iterator

from mtsft.dialogue.schema import Dialogue

_REASONING = re.compile(r"\A<think>.*?</think>", re.DOTALL)


class SpelledControls:
    """Finds the texts of control tokens in what people wrote."""

    def __init__(self, controls: Collection[str]):
        self._spelled = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        self._firsts = {text[0] for text in controls}
        self._reasons = "</think>" in controls  # as the marks around a reply's reasoning, which are no words of it

    def messages(self, dialogue: Dialogue) -> Iterator[int]:
        """The indices of the messages that spell one."""
        texts = [m.content or "" if not m.fields else f"{m.content}{m.fields}" for m in dialogue.messages]
        joined = "\n".join(texts)
        # Most dialogues hold not even a first character, which is found faster than a pattern.
        if any(first in joined for first in self._firsts) and self._spelled.search(joined):
            for i, (message, text) in enumerate(zip(dialogue.messages, texts)):
                words = _REASONING.sub("", text) if self._reasons and message.role == "assistant" else text
                if self._spelled.search(words):
                    yield i
