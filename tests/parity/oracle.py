"""What transformers makes of a dialogue, and everything in which mtsft differs from it, by name.

For response k at message i, by transformers alone, on the records that the template is given:

    context_k   ids of apply_chat_template(m_1 .. m_{i-1}, add_generation_prompt=True)
    response_k  ids of what apply_chat_template(m_1 .. m_i) adds to that text, up to the family's own end of a turn
                (families.py says which), read in its place: after the control token that ends the context, or going on
                from the text that does
"""

import datetime
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from families import Family
from transformers.utils import chat_template_utils

from mtsft.config import DataConfig
from mtsft.dialogue.readers import parse, read_chunks
from mtsft.dialogue.schema import Dialogue, Message
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.loss_weights import response_weights
from mtsft.encoding.spec import ChatFormat, EncodingSpec
from mtsft.errors import InputError
from mtsft.template.jinja import Refused
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.tokenizer import load as tokenizers

DATE = "2026-01-31"
_NEWLINE = "\n"
_THOUGHT = ("<think>", "</think>")


class Now(datetime.datetime):
    """What transformers is told today is."""

    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromisoformat(DATE)


class Turn(NamedTuple):
    """A response: its message, why it is not faithful ("" if it is), and the texts of its context and of itself."""

    message: int
    unfaithful: str
    context: str
    response: str


class Findings(NamedTuple):
    """counts: by name. different: every unexplained difference, in a line."""

    stats: Counter
    different: list[str]


class Pair:
    """A family in transformers and in mtsft, from one and the same folder."""

    def __init__(self, family: Family, folder: Path):
        self.family = family
        self.theirs = transformers.AutoTokenizer.from_pretrained(folder)
        files = tokenizers.read_files(folder)
        chat = ChatFormat(files, tokenizers.chat_templates(files), family.name, json.dumps(family.variables), DATE)
        self.spec = EncodingSpec(chat, DataConfig(sequence_length=2**31 - 1, unfaithful="skip", refused="skip"))
        self.encoder: Encoder = self.spec.encoder()
        self.template, self.ours = self.encoder.template, self.encoder.tokenizer
        self._added = list(self.theirs.added_tokens_decoder.values())
        self._plain_control = next(t.content for t in self._added if t.special and not t.lstrip and not t.rstrip)

    def render(self, records: list[dict], dialogue: Dialogue, prompt: bool) -> str | None:
        """What transformers renders; None where it raises."""
        variables = {**self.family.variables, **(dialogue.variables or {})}
        try:
            return self.theirs.apply_chat_template(
                records, tools=dialogue.tools, tokenize=False, add_generation_prompt=prompt, **variables
            )
        except Exception:  # a template may go wrong in many ways
            return None

    def render_with_none(self, records: list[dict], dialogue: Dialogue, prompt: bool) -> str | None:
        """The same with keys whose value is None left in, as transformers did up to version 5.

        Some templates write a reply's calls only where its content is none: they cannot be used otherwise.
        """
        variables = {**self.theirs.special_tokens_map, **self.family.variables, **(dialogue.variables or {})}
        try:
            return chat_template_utils.render_jinja_template(
                [records],
                tools=dialogue.tools,
                chat_template=self.theirs.get_chat_template(tools=dialogue.tools),
                add_generation_prompt=prompt,
                **variables,
            )[0][0]
        except Exception:
            return None

    def ids(self, text: str) -> list[int]:
        return self.theirs(text, add_special_tokens=False).input_ids

    def response_ids(self, context: str, response: str) -> list[int]:
        """The ids of a response, as the tokenizer reads it in its place: after a control token, or going on from text.

        Only where that makes a difference: some tokenizers put a space before what follows a control token, but not
        before what goes on from text. What stands before a response here is only its last token's like, so that
        neither joins the other: a model goes on from the tokens that it is given.
        """
        if not self.family.puts_space:
            return self.ids(response)
        before = self._plain_control if self._ends_in_control(context) else _NEWLINE
        known, ids = self.ids(before), self.ids(before + response)
        assert ids[: len(known)] == known
        return ids[len(known) :]

    def _ends_in_control(self, text: str) -> bool:
        """Whether a text ends in a control token, or in white space that one eats."""
        bare = text.rstrip()
        token = next((token for token in self._added if bare.endswith(token.content)), None)
        return token is not None and (bare == text or token.rstrip)

    def same_text(self, ids: Sequence[int], text: str) -> bool:
        """Whether ids decode to a text, but for what the tokenizer normalises and the white space that it eats."""
        said = self.ours.decode(ids)
        if self.family.sentence_piece:  # writes a space as "▁", and cannot tell the two apart
            text = text.replace("▁", " ")
        if self.family.puts_space:
            return re.sub(r"\s", "", said) == re.sub(r"\s", "", text)
        return said == text or unicodedata.normalize("NFC", said) == unicodedata.normalize("NFC", text)


def path_to(dialogue: Dialogue, message: int) -> tuple[int, ...]:
    """The messages from the first one to this one."""
    if dialogue.parents is None:
        return tuple(range(message + 1))
    path = []
    while message >= 0:
        path.append(message)
        message = dialogue.parents[message]
    return tuple(path[::-1])


class Comparison:
    """One dialogue under a family, in transformers and in mtsft."""

    def __init__(self, pair: Pair, dialogue: Dialogue, findings: Findings):
        self.pair, self.dialogue = pair, dialogue
        self.stats, self.different = findings
        self.records = [pair.template.record(message) for message in dialogue.messages]
        self.tracked = TrackedDialogue(pair.template, dialogue)
        self._rendered: dict[tuple, str | None] = {}

    def note(self, what: str, *more: Any) -> None:
        self.stats["DIFFERENT"] += 1
        if len(self.different) >= 20:
            return
        self.different.append(" ".join([f"{self.pair.family.name}: {self.dialogue.source}: {what}", *map(repr, more)]))

    def render(self, path: tuple[int, ...], prompt: bool) -> str | None:
        """transformers' text, found equal to both of ours; None where all refuse."""
        if (path, prompt) not in self._rendered:
            self._rendered[path, prompt] = self._render(path, prompt)
        return self._rendered[path, prompt]

    def _render(self, path: tuple[int, ...], prompt: bool) -> str | None:
        pair, dialogue, stats = self.pair, self.dialogue, self.stats
        records = [self.records[i] for i in path]
        theirs = pair.render(records, dialogue, prompt)
        try:
            plain = pair.template.render([dialogue.messages[i] for i in path], prompt, dialogue)
        except Refused:
            plain = None
        try:
            tracked = self.tracked.tracker.text(str(self.tracked.render(path[-1] if path else -1, prompt)))
        except Refused:
            tracked = None
        stats["renderings"] += 1
        if plain != theirs and any(None in record.values() for record in records):
            theirs = pair.render_with_none(records, dialogue, prompt)
            stats["renderings: content is none"] += plain == theirs
        if not theirs == plain == tracked:
            self.note(f"messages {path}, prompt {prompt}", *_around(theirs, plain if plain != theirs else tracked))
        stats["renderings: refused"] += theirs is None
        return theirs

    def renderings(self) -> None:
        """Compares every context and every beginning."""
        for i in range(len(self.dialogue.messages)):
            path = path_to(self.dialogue, i)
            self.render(path, True)
            self.render(path, False)

    def tokens(self) -> None:
        """Compares the ids of every response and its context."""
        pair, dialogue, stats = self.pair, self.dialogue, self.stats
        wanted = response_weights(dialogue, DataConfig())
        turns = [self._turn(message) for message in wanted]
        stats["turns"] += len(turns)
        if any(turn and not turn.context for turn in turns):
            stats["turns: nothing stands before one of them"] += len(turns)
            return  # transformers renders no empty conversation
        try:
            grown = pair.encoder.grow(dialogue, wanted)
        except InputError as error:
            stats["turns: refused"] += len(turns)
            if None not in turns:
                self.note(f"refused by mtsft alone: {error}")
            return
        found = {message: (first, end) for first, end, message in grown.responses}
        for message, turn in zip(wanted, turns):
            if turn is None:
                stats["turns: refused"] += 1
                if message in found:
                    self.note(f"message {message}: refused by transformers alone")
                continue
            if turn.unfaithful:
                stats[f"turns: unfaithful ({turn.unfaithful})"] += 1
            if bool(turn.unfaithful) == (turn.message in found):
                self.note(f"message {turn.message}: {turn.unfaithful or 'faithful'}, and mtsft thinks otherwise")
            elif not turn.unfaithful:
                self._compare_ids(turn, *path_ids(grown.tree, *found[turn.message]))

    def _compare_ids(self, turn: Turn, context: list[int], response: list[int]) -> None:
        pair, stats = self.pair, self.stats
        expected = pair.ids(turn.context), pair.response_ids(turn.context, turn.response)
        if (context, response) == expected:
            stats["turns: identical"] += 1
        elif spelled := self._spelled(turn.message):
            stats["turns: text spells a control token"] += 1
            self._compare_controls(turn.message, context + response, Counter(expected[0] + expected[1]), spelled)
        else:
            part = 0 if context != expected[0] else 1
            show = [pair.theirs.convert_ids_to_tokens(ids) for ids in ((context, response)[part], expected[part])]
            self.note(f"message {turn.message}: {('context', 'response')[part]} ids", *_around(*show))
        if not pair.same_text(context + response, turn.context + turn.response):
            self.note(f"message {turn.message}: decodes otherwise", pair.ours.decode(context + response)[-300:])

    def _compare_controls(self, message: int, ids: list[int], theirs: Counter, spelled: list[str]) -> None:
        """Whether the control tokens are those that are there where the words spell none.

        Not of the marks of reasoning, which templates look for in the words: no more of them than transformers has.
        """
        pair = self.pair
        controls = {control.id: text for text, control in pair.ours.controls.items()}
        thought = {index for index, text in controls.items() if text in _THOUGHT}
        kept = Counter(ids)
        for index in thought:
            if kept[index] > theirs[index]:
                self.note(f"message {message}: more of {controls[index]!r} than in transformers")
        said = [text for text, control in pair.ours.controls.items() if not control.special]
        calm = _disarmed(self.dialogue, spelled, said)
        armless = Comparison(pair, calm, Findings(Counter(), self.different))
        turn = armless._turn(message)
        if turn is None or turn.unfaithful:
            self.note(f"message {message}: refused or unfaithful where nothing is spelled")
            return
        wanted = [i for i in pair.ids(turn.context + turn.response) if i in controls and i not in thought]
        found = [i for i in ids if i in controls and i not in thought]
        if found != wanted:
            self.note(f"message {message}: controls", *([controls[i] for i in these] for these in (found, wanted)))

    def _turn(self, message: int) -> Turn | None:
        """A response as transformers renders it; None where that raises."""
        path, said = path_to(self.dialogue, message), self.dialogue.messages[message]
        if len(path) < 2:
            return Turn(message, "", "", "")
        context, whole = self.render(path[:-1], True), self.render(path, False)
        if context is None or whole is None:
            return None
        if not whole.startswith(context):
            return Turn(message, "prompt", context, "")
        rest = whole[len(context) :]
        stop, trailing = self.pair.family.end(bool((said.fields or {}).get("tool_calls")))
        if trailing is None:
            response = rest + stop
        elif not rest.endswith(stop + trailing):
            return Turn(message, "stop", context, "")
        else:
            response = rest.removesuffix(trailing)
        missing = list(missing_words(said, response))
        return Turn(message, "lost" if missing else "", context, response)

    def _spelled(self, message: int) -> list[str]:
        """The controls that words of the dialogue spell, but for the marks around reasoning at the head of a reply."""
        texts = [text for tool in self.dialogue.tools or () for text in _strings(tool)]
        for i in path_to(self.dialogue, message):
            said = self.dialogue.messages[i]
            content = said.content or ""
            if said.role == "assistant" and content.startswith("<think>") and "</think>" in content:
                content = content.removeprefix("<think>").replace("</think>", "", 1)
            texts += [content, *_strings(said.fields or {})]
        return [control for control in self.pair.ours.controls if any(control in text for text in texts)]


def _disarmed(dialogue: Dialogue, spelled: Sequence[str], said: Sequence[str]) -> Dialogue:
    """A dialogue that spells these controls no more, but for the marks of reasoning, and those that replies may say."""

    def disarm(value: Any, kept: Sequence[str] = ()) -> Any:
        text = json.dumps(value, ensure_ascii=False)
        for control in spelled:
            if control not in _THOUGHT and control not in kept:
                text = text.replace(control, f"{control[0]}\u2060{control[1:]}")
        return json.loads(text)

    messages = []
    for m in dialogue.messages:
        fields = disarm(m.fields)
        if m.role == "assistant" and fields and "reasoning_content" in fields:
            fields["reasoning_content"] = disarm(m.fields["reasoning_content"], said)
        content = disarm(m.content, said if m.role == "assistant" else ())
        messages.append(m._replace(content=content, fields=fields))
    return replace(dialogue, messages=tuple(messages), tools=disarm(dialogue.tools))


def missing_words(said: Message, text: str) -> Iterator[str]:
    """The words of a reply that a text does not show."""
    for piece in re.split("<think>|</think>", said.content or ""):
        if piece.strip() and piece.strip() not in text:
            yield piece
    fields = said.fields or {}
    reasoning = (fields.get("reasoning_content") or "").strip()
    if reasoning and reasoning not in text:
        yield reasoning
    pieces = [piece.strip() for piece in re.split("<think>|</think>", said.content or "") if piece.strip()]
    if pieces and pieces[-1] in text:  # the calls stand after the words, or before them; the words may speak of them
        at = text.rindex(pieces[-1])
        text = text[:at] + text[at + len(pieces[-1]) :]
    names = Counter(call["function"]["name"] for call in fields.get("tool_calls") or ())
    for name, count in names.items():
        if len(re.findall(rf"(?<!\w){re.escape(name)}(?!\w)", text)) < count:
            yield name
    for call in fields.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        for word in _strings(arguments):
            escaped = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
            if not any(w in text for w in (word, word.strip(), json.dumps(word, ensure_ascii=False)[1:-1], escaped)):
                yield word


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def path_ids(tree: Any, first: int, end: int) -> tuple[list[int], list[int]]:
    """The ids of a response and of all that stands before it."""
    nodes, node = [], int(tree.parents_N[first])
    while node >= 0:
        nodes.append(node)
        node = int(tree.parents_N[node])
    assert (tree.response_mask_N[first:end] > 0).all()
    assert (tree.parents_N[first + 1 : end] == range(first, end - 1)).all()
    return tree.tokens_N[nodes[::-1]].tolist(), tree.tokens_N[first:end].tolist()


def _around(one: Any, other: Any) -> tuple[Any, Any]:
    """Two sequences near the first place where they differ."""
    if one is None or other is None:
        return one and one[-200:], other and other[-200:]
    at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    return one[max(at - 30, 0) : at + 30], other[max(at - 30, 0) : at + 30]


def compare(pair: Pair, dialogues: Sequence[Dialogue], every_rendering: bool = True) -> Findings:
    """Everything about these dialogues, compared. every_rendering: not only those that a response needs."""
    findings = Findings(Counter(), [])
    for dialogue in dialogues:
        comparison = Comparison(pair, dialogue, findings)
        findings.stats["dialogues"] += 1
        if every_rendering:
            comparison.renderings()
        comparison.tokens()
    return findings


def read(path: Path) -> list[Dialogue]:
    """All dialogues of a file."""
    found = []
    for chunk in read_chunks(path):
        for number, record in zip(chunk.numbers, chunk.records):
            if (dialogue := parse(record, path, number)) is not None:
                found.append(dialogue)
    return found


def sample(dialogues: Sequence[Dialogue], count: int, longest: int = 24) -> list[Dialogue]:
    """Some dialogues of a file, evenly spread, none of many messages."""
    short = [dialogue for dialogue in dialogues if len(dialogue.messages) <= longest] or dialogues
    step = max(len(short) / count, 1)
    return [short[int(i * step)] for i in range(min(count, len(short)))]
