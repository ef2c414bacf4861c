"""How dialogues become tokens, in plain values: all that an encoding process, or the user of a trained model, needs."""

import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mtsft.config import DataConfig
from mtsft.dialogue.record_format import RecordFormat
from mtsft.encoding.encoder import Encoder
from mtsft.errors import InputError
from mtsft.template.built_in import BUILT_IN
from mtsft.template.chat_template import ChatTemplate
from mtsft.template.reasoning import KNOWN
from mtsft.tokenizer import load as tokenizers
from mtsft.tokenizer.base import Tokenizer

UNBOUNDED = 2**31 - 1  # a sequence_length for dialogues of any length
# Keys that decide which files are read, and by which template and tokenizer. Tokens that are cached depend on every
# other key, so that one which is new does no harm.
KEYS_OF_OTHERS = frozenset(
    "train eval eval_fraction corpus corpus_dialogues corpus_eval_dialogues corpus_seed tokenizer vocab_size template "
    "template_variables template_date workers cache_dir cache_bytes".split()
)
_OPENED: dict[str, tuple[ChatTemplate, Tokenizer]] = {}
_MOST_OPENED = 8
# What looks like a control token among a template's literals, for a tokenizer that is trained here.
_MARKER = re.compile(r"<\|[^<>|\s]{1,60}\|>|</?[A-Za-z_][\w:-]{0,60}>|\[/?[A-Z_]{2,30}\]")


@dataclass(frozen=True)
class ChatFormat:
    """How messages become token ids: a chat template, and the tokenizer of the text that it renders.

    The two belong together: a template writes control tokens that the tokenizer must know. A run keeps them, as plain
    bytes and text that any process can be sent, so that what it trained is served with the same.

    Attributes:
        tokenizer: its files by name.
        templates: Jinja texts by name; "default", and "tool_use" for dialogues with tools where there is one.
        name: the template's, for errors.
        variables: keyword arguments of the template, as JSON.
        date: what the template is told today is (YYYY-MM-DD), "" for today.
    """

    tokenizer: Mapping[str, bytes]
    templates: Mapping[str, str]
    name: str = "chatml"
    variables: str = "{}"
    date: str = ""

    def open(self, source: str = "the tokenizer") -> tuple[ChatTemplate, Tokenizer]:
        """The template and the tokenizer; formats that are alike share them, since a large tokenizer loads slowly.

        source: what an error calls the tokenizer. Raises InputError if the two do not go together.
        """
        key = f"{digest(self.tokenizer)} {self.as_json()}"
        if key not in _OPENED:
            if len(_OPENED) >= _MOST_OPENED:
                _OPENED.clear()
            _OPENED[key] = self._open(source)
        return _OPENED[key]

    def _open(self, source: str) -> tuple[ChatTemplate, Tokenizer]:
        literals = ChatTemplate(self.templates, self.name).literals
        # A model's reasoning marks are its tokens, whether the template spells them or a reply does.
        marks = [mark for pair in KNOWN for mark in pair]
        tokenizer = tokenizers.from_files(self.tokenizer, [*literals, *marks], source)
        if self.name in BUILT_IN:  # whose markers must be tokens, or no turn would end
            tokenizer.require(BUILT_IN[self.name].markers)
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
    """Everything that decides which tokens a file of dialogues becomes, but the file itself.

    Attributes:
        chat: the template and the tokenizer.
        config: how dialogues become tokens, see Encoder; and `format`, which the files are read as.
        split: (from, to) in [0, 1]: keep the dialogues whose content hashes into that part, so that equal dialogues
            stay on one side of a split.
        lenient: lines that hold no dialogue are counted and left out, rather than an error.
    """

    chat: ChatFormat
    config: DataConfig
    split: tuple[float, float] = (0.0, 1.0)
    lenient: bool = False

    def encoder(self) -> Encoder:
        """A new encoder. Raises InputError for a value that `config` must not have."""
        return Encoder(*self.chat.open(), self.config)

    @property
    def record_format(self) -> RecordFormat:
        """How the records of the files are read. Raises InputError for values that say no such thing."""
        config = self.config
        return RecordFormat.of(config.format, config.columns, config.roles, config.system, config.max_dialogue_bytes)

    def with_config(self, **values: Any) -> "EncodingSpec":
        """The same but for these keys of `config`."""
        return replace(self, config=replace(self.config, **values))

    def without_errors(self) -> "EncodingSpec":
        """The same for an audit: what would stop a run is counted and left out; other policies stay as they are."""
        over_length = "drop" if self.config.over_length == "error" else self.config.over_length
        unfaithful = "skip" if self.config.unfaithful == "error" else self.config.unfaithful
        return replace(self.with_config(over_length=over_length, unfaithful=unfaithful, refused="skip"), lenient=True)

    def of_any_length(self) -> "EncodingSpec":
        """The same for whole dialogues, each one tree, whatever becomes of long ones and of those that branch."""
        return self.with_config(sequence_length=UNBOUNDED, over_length="error", trees="tree")

    def cache_key(self) -> dict[str, Any]:
        """What the cached tokens of a file are keyed by, beside the file and the code that made them.

        Plain values, one a field; the template and the tokenizer by their fingerprints, so that the same ones under
        another name, or in another folder, find the same store. Two specs that may encode anything differently differ.
        """
        template, tokenizer = self.chat.open()
        keys = {key: value for key, value in asdict(self.config).items() if key not in KEYS_OF_OTHERS}
        made_by = {"template": template.fingerprint, "tokenizer": tokenizer.fingerprint}
        return keys | made_by | {"split": self.split, "lenient": self.lenient}


def parse_variables(text: str) -> str:
    """data.template_variables, checked to be JSON of one object and written with sorted keys. Raises InputError."""
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
