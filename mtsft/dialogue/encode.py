"""A dialogue as a tree of tokens that says exactly which words the model learns to say, in which contexts.

For response k at message i, with the chat template R,

    context_k  = R(m_1 .. m_{i-1}, add_generation_prompt=True), tokenised as a server would
    response_k = what the model must emit to say m_i, tokenised by itself, its stop included

and the tree is the union of all paths context_k + response_k. Where every context_{k+1} begins with context_k +
response_k it is one chain; where a tokenizer reads a turn in the history otherwise than the model emitted it, the
tree branches, and the objective stays the same sum.
"""

from dataclasses import asdict, dataclass, field

from mtsft.dialogue.schema import Dialogue
from mtsft.dialogue.template import ChatML, Span
from mtsft.dialogue.tokenizer import Tokenizer
from mtsft.dialogue.tree import TokenTree, TreeBuilder
from mtsft.errors import InputError

POLICIES = ("error", "drop", "keep_first")


@dataclass
class Counts:
    """What became of the dialogues given, so that nothing disappears; closed under +=.

    dialogues, responses: as read. kept: dialogues that train. without_response: dialogues that nothing trains.
    altered: responses whose tokens do not decode to their text (a tokenizer that normalises).
    over_length_*: dialogues dropped whole, dialogues cut, and the responses and supervised tokens lost with either.
    tokens, supervised_tokens, supervised_weight: of what is kept.
    """

    dialogues: int = 0
    responses: int = 0
    kept: int = 0
    without_response: int = 0
    branching: int = 0
    altered: int = 0
    over_length_dropped: int = 0
    over_length_cut: int = 0
    over_length_responses: int = 0
    over_length_supervised_tokens: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    supervised_weight: float = 0.0

    def __iadd__(self, other: "Counts") -> "Counts":
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass
class Encoder:
    """Turns dialogues into trees of at most `max_length` tokens, and counts what it meets.

    over_length: what becomes of a longer one: "error" raises InputError; "drop" leaves it out; "keep_first" keeps
    its first turns, whole, so that the last response kept keeps its stop.
    """

    template: ChatML
    tokenizer: Tokenizer
    max_length: int
    over_length: str = "error"
    counts: Counts = field(default_factory=Counts)

    def __call__(self, dialogue: Dialogue) -> TokenTree | None:
        """The tree of `dialogue`, or None where nothing of it trains. Raises InputError under "error"."""
        self.counts.dialogues += 1
        tree, ends = self._grow(dialogue)
        if not ends:
            self.counts.without_response += 1
            return None
        self.counts.responses += len(ends)
        if len(tree) > self.max_length:
            tree = self._shorten(dialogue, tree, ends)
        if tree is not None:
            supervised = tree.response_mask_N > 0
            self.counts.kept += 1
            self.counts.branching += int((tree.parents_N[1:] != range(len(tree) - 1)).any())
            self.counts.tokens += len(tree)
            self.counts.supervised_tokens += int(supervised.sum())
            self.counts.supervised_weight += float(tree.response_mask_N.sum(dtype="float64"))
        return tree

    def _grow(self, dialogue: Dialogue) -> tuple[TokenTree, list[int]]:
        """The whole tree, and how many tokens stand up to the end of each response."""
        builder, ends, turn = TreeBuilder(), [], 0
        depth = 0  # of the history on the builder's current path
        unwalked = []  # messages of the history that no response has needed yet
        for index, message in enumerate(dialogue.messages):
            if message.is_response:
                for past_index, past in unwalked:
                    depth = builder.descend(depth, *self._encode(self.template.message(past), past_index), turn)
                unwalked = []
                prompt = self._encode(self.template.generation_prompt(), index)
                response = self._encode(self.template.response(message), index)
                end = builder.descend(depth, *prompt, turn)
                builder.descend(end, *response, turn, weight=message.weight)
                ends.append(len(builder))
                self._count_if_altered(message.content, response)
            unwalked.append((index, message))
            turn += message.role == "assistant"
        return builder.build(), ends

    def _encode(self, spans: list[Span], index: int) -> tuple[list[int], list[int]]:
        """(ids, message ids) of spans: each stretch of text between two markers is read by itself, whole."""
        ids, owners = [], []
        stretch = []
        for span in [*spans, None]:
            if span is not None and not span.control:
                stretch.append(span)
                continue
            for part_ids, owned in self._encode_stretch(stretch):
                ids += part_ids
                owners += [index if owned else -1] * len(part_ids)
            stretch = []
            if span is not None:
                ids.append(self.tokenizer.marker_ids[span.text])
                owners.append(-1)
        return ids, owners

    def _encode_stretch(self, spans: list[Span]) -> list[tuple[list[int], bool]]:
        """The ids of adjoining texts, as one text, with who owns each part of them."""
        spans = [span for span in spans if span.text]
        if len(spans) <= 1:
            return [(self.tokenizer.encode(span.text), span.owned) for span in spans]
        whole = self.tokenizer.encode("".join(span.text for span in spans))
        parts, start = [], 0
        for span in spans[:-1]:
            own = self.tokenizer.encode_cached(span.text)
            # A token that reaches across the border is counted with the later text.
            end = start + next((i for i, (a, b) in enumerate(zip(own, whole[start:])) if a != b), len(own))
            parts.append((whole[start:end], span.owned))
            start = end
        return [*parts, (whole[start:], spans[-1].owned)]

    def _count_if_altered(self, content: str, response: tuple[list[int], list[int]]) -> None:
        words = [i for i, owner in zip(*response) if owner >= 0]
        self.counts.altered += self.tokenizer.decode(words) != content

    def _shorten(self, dialogue: Dialogue, tree: TokenTree, ends: list[int]) -> TokenTree | None:
        if self.over_length == "error":
            raise InputError(
                f"{dialogue.source}: {len(tree)} tokens, more than data.sequence_length={self.max_length}; "
                "raise it, or set data.over_length to 'keep_first' or 'drop'"
            )
        kept = [end for end in ends if end <= self.max_length] if self.over_length == "keep_first" else []
        length = kept[-1] if kept else 0
        lost = tree.response_mask_N[length:] > 0
        self.counts.over_length_responses += len(ends) - len(kept)
        self.counts.over_length_supervised_tokens += int(lost.sum())
        if not kept:
            self.counts.over_length_dropped += 1
            return None
        self.counts.over_length_cut += 1
        return tree.head(length)
