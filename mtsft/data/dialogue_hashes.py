"""Numbers that stand for a dialogue's words: on which side of a split it is, and whether it was seen before."""

import hashlib
import json

from mtsft.dialogue.schema import Dialogue
from mtsft.template.chat_template import ChatTemplate


def in_split(dialogue: Dialogue, split: tuple[float, float]) -> bool:
    """Whether a dialogue belongs to the part (from, to) of all, by its `split_point`."""
    return split == (0.0, 1.0) or split[0] <= split_point(dialogue) < split[1]


def split_point(dialogue: Dialogue) -> float:
    """Where in [0, 1) a dialogue hashes to by its words alone, whatever its id and the layout of its line."""
    words = [[m.role, m.content, m.fields] if m.fields else [m.role, m.content] for m in dialogue.messages]
    if dialogue.parents or dialogue.tools:
        words.append([dialogue.parents, dialogue.tools])
    return _hash(json.dumps(words, default=str)) / 2**64


def words_digest(dialogue: Dialogue, template: ChatTemplate) -> int:
    """A number that dialogues share which say the same to the template; faster than `split_point`."""
    words = [f"{m.role}\0{m.content}\0{m.fields or ''}" for m in dialogue.messages]
    if dialogue.variables or dialogue.others:
        words.append(str(template.given(dialogue) or ""))
    words += [str(read) for m in dialogue.messages if m.others and (read := template.read_of(m))]
    return _hash("\0".join(words if dialogue.parents is None else [*words, str(dialogue.parents)]))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
