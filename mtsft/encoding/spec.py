"""How text becomes tokens, in plain values: all that an encoding process, or a trained model's user, needs."""

import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mtsft.encoding.encoder import Encoder
from mtsft.encoding.loss_weights import LossWeights
from mtsft.errors import InputError
from mtsft.template.chat_template import BUILT_IN, ChatTemplate
from mtsft.tokenizer import load as tokenizers
from mtsft.tokenizer.base import Tokenizer

_UNBOUNDED = 2**31 - 1
_OPENED: dict[str, tuple[ChatTemplate, Tokenizer]] = {}
_MOST_OPENED = 8
# What looks like a token of its own among a template's literals, for a tokenizer that is trained here.
_MARKER = re.compile(r"<\|[^<>|\s]{1,60}\|>|</?[A-Za-z_][\w:-]{0,60}>|\[/?[A-Z_]{2,30}\]")


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and the tokenizer that reads what it writes.

    tokenizer: its files by name. templates: Jinja texts by name. name: the template's, for errors. variables: keyword
    arguments of the template, as JSON. date: what the template is told today is (YYYY-MM-DD), "" for today.
    """

    tokenizer: Mapping[str, bytes]
    templates: Mapping[str, str]
    name: str = "chatml"
    variables: str = "{}"
    date: str = ""

    def open(self, source: str = "the tokenizer") -> tuple[ChatTemplate, Tokenizer]:
        """The template and the tokenizer. Raises InputError if they do not go together; source: for its message.

        Chats that are alike share them: a large tokenizer takes a while to load.
        """
        key = f"{digest(self.tokenizer)} {self.as_json()}"
        if key not in _OPENED:
            if len(_OPENED) >= _MOST_OPENED:
                _OPENED.clear()
            _OPENED[key] = self._open(source)
        return _OPENED[key]

    def _open(self, source: str) -> tuple[ChatTemplate, Tokenizer]:
        literals = ChatTemplate(self.templates, self.name).literals
        tokenizer = tokenizers.from_files(self.tokenizer, literals, source)
        if self.name in BUILT_IN:  # whose markers are tokens, or turns would have no end
            tokenizer.require(markers_of(literals))
        now = datetime.datetime.fromisoformat(self.date) if self.date else None
        variables = json.loads(self.variables)
        return ChatTemplate(self.templates, self.name, tokenizer.special_tokens, variables, now), tokenizer

    def as_json(self) -> str:
        """All of it but the tokenizer, to be kept beside a trained model."""
        # "sources": as runs before this name have it in their workdirs.
        record = {"sources": dict(self.templates), "name": self.name, "variables": self.variables, "date": self.date}
        return json.dumps(record, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def of(cls, tokenizer: Mapping[str, bytes], record: str) -> "ChatFormat":
        """From a tokenizer's files and what as_json gave. Raises ValueError, TypeError or LookupError otherwise."""
        kept = json.loads(record)
        return cls(tokenizer, kept.pop("sources"), **kept)


@dataclass(frozen=True)
class EncodingSpec:
    """A chat, and which words of dialogues are trained, how; see Encoder.

    format: of the files, "" to recognise it. split: (from, to) in [0, 1]: keep the dialogues whose content hashes into
    that part, so that equal dialogues stay on one side of a split. lenient: nothing is an error: lines that cannot be
    read, too, are counted and left out.
    """

    chat: ChatFormat
    max_length: int
    over_length: str = "error"
    loss_weights: LossWeights = field(default_factory=LossWeights)
    trees: str = "tree"
    unfaithful: str = "error"
    refused: str = "error"
    stops: tuple[str, ...] = ()
    format: str = ""
    split: tuple[float, float] = (0.0, 1.0)
    lenient: bool = False

    def encoder(self) -> Encoder:
        """An encoder of its own, its counts at zero."""
        template, tokenizer = self.chat.open()
        return Encoder(
            template,
            tokenizer,
            self.max_length,
            over_length=self.over_length,
            loss_weights=self.loss_weights,
            trees=self.trees,
            unfaithful=self.unfaithful,
            refused=self.refused,
            stops=self.stops,
        )

    def without_errors(self) -> "EncodingSpec":
        """The same for looking at a dataset: dialogues of any length, and everything wrong counted and left out."""
        unfaithful = "skip" if self.unfaithful == "error" else self.unfaithful
        return replace(self, max_length=_UNBOUNDED, unfaithful=unfaithful, refused="skip", lenient=True)

    def cache_key(self) -> dict[str, Any]:
        """Values that change whenever anything may be encoded otherwise."""
        template, tokenizer = self.chat.open()
        record = asdict(replace(self, chat=None))
        return record | {"template": template.fingerprint, "tokenizer": tokenizer.fingerprint}


def parse_variables(text: str) -> str:
    """data.template_variables checked: JSON of one object, in one spelling. Raises InputError."""
    try:
        variables = json.loads(text or "{}")
    except ValueError:
        variables = None
    if not isinstance(variables, dict):
        raise InputError(
            f"data.template_variables={text!r}: write one JSON object, such as '{{\"enable_thinking\": false}}'"
        )
    return json.dumps(variables, sort_keys=True)


def parse_date(text: str) -> str:
    """data.template_date checked. Raises InputError."""
    try:
        return datetime.date.fromisoformat(text).isoformat() if text else ""
    except ValueError:
        raise InputError(f"data.template_date={text!r}: write a date as 2026-01-31, or nothing for today") from None


def markers_of(literals: Iterable[str]) -> list[str]:
    """What looks like control tokens in a template's literals, for a tokenizer that is yet to be trained."""
    return sorted({marker for literal in literals for marker in _MARKER.findall(literal)})


def digest(files: Mapping[str, bytes]) -> str:
    """A digest of files by name."""
    parts = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
