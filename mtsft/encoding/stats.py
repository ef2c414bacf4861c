"""What became of every dialogue read, so that nothing disappears."""

from collections import Counter
from dataclasses import dataclass, field, fields


@dataclass
class EncodingStats:
    """Closed under +=. All but the three Counters are plain sums.

    dialogues, responses: as read. kept: dialogues that train. without_response: dialogues that nothing trains.
    refused: dialogues that the template refuses, left out. skipped_turns: responses left out as unfaithful. branching:
    dialogues whose tokens form a tree. rewriting: those in which a template shows an earlier turn otherwise than it was
    emitted. altered: responses whose tokens do not decode to their text (a tokenizer that normalises). spelling:
    messages that spell a control token, encoded as plain text. malformed: tool calls whose arguments are no JSON.
    over_length_*: dialogues longer than a row, those dropped whole, those cut, the extra dialogues that windows make,
    the responses and the supervised tokens that are lost. tokens, supervised_tokens, supervised_weight: of what is
    kept; chain_tokens: what it would cost as one chain per path; response_tokens: as one sequence per response.
    unfaithful: responses by kind, whatever became of them. lost: words that no rendering shows, by field.
    by_role, by_turn: supervised tokens. examples: for every kind of problem the places of the first few.
    """

    dialogues: int = 0
    unreadable: int = 0
    responses: int = 0
    kept: int = 0
    without_response: int = 0
    refused: int = 0
    skipped_turns: int = 0
    branching: int = 0
    not_prefix_preserving: int = 0
    altered: int = 0
    spelling: int = 0
    malformed: int = 0
    double_bos: int = 0
    over_length: int = 0
    over_length_dropped: int = 0
    over_length_cut: int = 0
    over_length_windows: int = 0
    over_length_responses: int = 0
    over_length_supervised_tokens: int = 0
    tokens: int = 0
    chain_tokens: int = 0
    response_tokens: int = 0
    supervised_tokens: int = 0
    supervised_weight: float = 0.0
    unfaithful: Counter = field(default_factory=Counter)
    lost: Counter = field(default_factory=Counter)
    by_role: Counter = field(default_factory=Counter)
    by_turn: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def __iadd__(self, other: "EncodingStats") -> "EncodingStats":
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if item.name == "examples":
                for kind, places in theirs.items():
                    self.note(kind, *places)
            elif isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, item.name, mine + theirs)
        return self

    def note(self, kind: str, *places: str) -> None:
        """Remembers where a problem was met, for the first few."""
        known = self.examples.setdefault(kind, [])
        known += places[: max(0, 5 - len(known))]

    def as_record(self) -> dict:
        """All of it in plain values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}

    @classmethod
    def of(cls, record: dict) -> "EncodingStats":
        """From what `as_record` gave, by way of JSON."""
        counters = {"unfaithful": str, "lost": str, "by_role": str, "by_turn": int}
        made = {name: Counter({key(k): n for k, n in record[name].items()}) for name, key in counters.items()}
        return cls(**{**record, **made})
