"""How much each character of a response counts, where not all count alike: spans, weight rules, reasoning.

Everything is a factor of the weight of the response. What decides is read off the text of the response as it is
rendered: whose words stand where (`TextPart`), which character of the content each is (template/origins.py), and where
the marks around a thought are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtsft.dialogue.schema import Message
from mtsft.encoding.text_ids import ControlPiece, Piece, TextPart
from mtsft.encoding.thoughts import thought_spans
from mtsft.encoding.weight_rules import WeightRules
from mtsft.template.chat_template import TemplateRefusal
from mtsft.template.origins import Untraceable, origins
from mtsft.template.placeholders import Bindings
from mtsft.template.reasoning import ReasoningMarks


class CharWeights(NamedTuple):
    """What the characters of a response count.

    Attributes:
        factors: float64 (C,), of the response's weight; None where all are 1.
        rules: the names of the rules that something in it is for.
    """

    factors: np.ndarray | None
    rules: list[str]


class CharRules(NamedTuple):
    """What characters are weighed by, in all dialogues.

    Attributes:
        rules: of the config.
        marks: around reasoning.
        train_reasoning: whether reasoning counts at all.
    """

    rules: WeightRules
    marks: ReasoningMarks
    train_reasoning: bool

    def weigh(
        self, pieces: Sequence[Piece], index: int, message: Message, opened: str, bindings: Bindings, source: str
    ) -> CharWeights:
        """The factors of the characters of a response.

        Args:
            pieces: of the response; the stop is the last one.
            index, message: of whom it is the words.
            opened: the reasoning mark that the context ends with, and what follows it; "" if none.
            bindings: of the dialogue.
            source: file and line of the dialogue, for errors.

        Raises:
            TemplateRefusal: the template writes the content so that no character of it can be told.
            InputError: a regex does not finish.
        """
        subject = f"{source}: message {index + 1}"
        of_text, applied = self.rules.of_text(message.content or "", subject)
        is_reply = message.role == "assistant"
        of_thoughts = self.rules.thinking if self.train_reasoning else 0.0
        weighs_parts = is_reply and (of_thoughts is not None or self.rules.tool_calls is not None)
        if message.spans is None and of_text is None and not weighs_parts:
            return CharWeights(None, applied)
        response = _Response(pieces, index)
        if message.spans is not None or of_text is not None:
            try:
                places = response.places(bindings)
            except Untraceable as error:
                raise TemplateRefusal(
                    f"{subject}: the chat template rewrites its content ({error}), so that its spans, or the text that "
                    "data.weight_rules names, cannot be told; give the whole message a weight"
                ) from None
            factors = response.of_spans(message, places)
            if of_text is not None:
                factors[places >= 0] *= of_text[places[places >= 0]]
        else:
            factors = np.ones(len(response.text))
        thoughts = thought_spans(pieces, self.marks, opened) if weighs_parts else []
        calls = response.calls(thoughts) if is_reply and self.rules.tool_calls is not None else []
        for spans, factor, name in (
            (thoughts, of_thoughts, "thinking"),
            (calls, self.rules.tool_calls, "tool_calls"),
        ):
            for start, end in spans if factor is not None else ():
                factors[start:end] *= factor
            if spans and getattr(self.rules, name) is not None:
                applied.append(name)
        return CharWeights(None if (factors == 1).all() else factors, applied)


class _Response:
    """The text of a response, and who wrote what of it.

    Args:
        pieces: of the response.
        index: of the message whose words it is.

    Attributes:
        text: all of it.
        end: where the stop begins.
    """

    def __init__(self, pieces: Sequence[Piece], index: int):
        self.index = index
        self.parts: list[tuple[int, TextPart | ControlPiece]] = []  # with where each begins
        at = 0
        for piece in pieces:
            for part in (piece,) if type(piece) is ControlPiece else piece.parts:
                self.parts.append((at, part))
                at += len(part.text)
        self.text = "".join(part.text for _, part in self.parts)
        is_stopped = self.parts and type(self.parts[-1][1]) is ControlPiece and self.parts[-1][1].message < 0
        self.end = self.parts[-1][0] if is_stopped else at

    def places(self, bindings: Bindings) -> np.ndarray:
        """int64 (C,): which character of the message's content each one is, -1 for none. Raises Untraceable."""
        places = np.full(len(self.text), -1)
        for at, part in self.parts:
            if part.words is not None and part.words.owner == self.index:
                whole = origins(part.words, self.index, bindings)
                places[at : at + len(part.text)] = whole[part.at : part.at + len(part.text)]
        return places

    def of_spans(self, message: Message, places: np.ndarray) -> np.ndarray:
        """float64 (C,): the factors that the spans of a message say; 1 where it has none."""
        if message.spans is None:
            return np.ones(len(self.text))
        of_content = np.zeros(len(message.content) + 1)  # and 0 for what is no character of it
        for start, end, factor in message.spans:
            of_content[start:end] = factor
        factors = of_content[places]
        own = [at + len(part.text) for at, part in self.parts if part.words is not None and part.text]
        after = own[-1] if own else 0
        factors[after:] = factors[after - 1] if after else 0.0  # what ends the turn goes with the last words
        return factors

    def calls(self, thoughts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where the calls are, with what the template writes around them: all between other words that holds any."""
        borders = [(0, 0), (self.end, self.end), *thoughts]
        borders += [
            (at, at + len(part.text))
            for at, part in self.parts
            if part.words is not None and part.words.field != "tool_calls"
        ]
        called = [at for at, part in self.parts if part.words is not None and part.words.field == "tool_calls"]
        found, last = [], 0
        for start, end in sorted(borders):
            if any(last <= at < start for at in called):
                found.append((last, start))
            last = max(last, end)
        return found
