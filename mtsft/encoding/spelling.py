"""Messages whose text spells a control token: a user who writes "<|im_end|>" ends no turn, and is counted."""

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.reply_tokens import SAID, ReplyTokens


class SpelledControls:
    """Finds the texts of control tokens in what people, and models, wrote.

    Args:
        controls: their texts.
        replies: which of them are tokens in a model's words.
    """

    def __init__(self, controls: Collection[str], replies: ReplyTokens):
        self._spelled = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        self._firsts = {text[0] for text in controls}
        self._replies = replies

    def are_in(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts spells a control token, or two of them do where one follows the other."""
        joined = "\n".join(texts)
        # Most dialogues hold not even a first character, which is found faster than a pattern.
        return any(first in joined for first in self._firsts) and self._spelled.search(joined) is not None

    def messages(self, dialogue: Dialogue) -> Iterator[tuple[int, bool]]:
        """(index, whether it becomes a token) of the messages that spell one; a reply may be met twice, as both."""
        texts = [m.content or "" if not m.fields else f"{m.content}{m.fields}" for m in dialogue.messages]
        if self.are_in(texts):
            for i, (message, text) in enumerate(zip(dialogue.messages, texts)):
                if message.role == "assistant":
                    fields = message.fields or {}
                    said = [self._replies.cut(words) for words in (message.content, fields.get(SAID[1])) if words]
                    if any(len(words) > 1 for words in said):
                        yield i, True
                    rest = {key: value for key, value in fields.items() if key != SAID[1]}
                    text = "\n".join([*chain.from_iterable(words[::2] for words in said), str(rest)])
                if self._spelled.search(text):
                    yield i, False
