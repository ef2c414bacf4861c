"""A dialogue as a tree of tokens that says exactly which words the model learns to say, in which contexts.

The tree is the union of all paths context_k + response_k (mtsft/template/compile.py says what they are): contexts are
tokenised as a server would, responses by themselves, their stop included. Where every context_{k+1} begins with
context_k + response_k it is one chain; where it does not (a template rewrites history, a dialogue has several replies
to one message, a tokenizer reads a turn in the history otherwise than it was emitted) it branches, and the objective
stays the same sum.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.chain_plan import ChainBatch, ChainPlan, as_emitted, compile_chain
from mtsft.encoding.counting import Spelling, count_chain, count_double_bos, count_over_length, count_tree, count_turns
from mtsft.encoding.loss_weights import LossWeights
from mtsft.encoding.over_length import POLICIES, shorten
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.text_ids import Piece, TextIds, TextKey, TextPiece
from mtsft.encoding.token_tree import TokenTree, TreeBuilder, expand, positions
from mtsft.errors import InputError
from mtsft.template.chat_template import ChatTemplate
from mtsft.template.compile import TemplateCompiler
from mtsft.template.placeholders import Bindings
from mtsft.template.spans import Turn, TurnPlan
from mtsft.template.tracked_dialogue import TemplateRefusal
from mtsft.tokenizer.base import Tokenizer

TREES = ("tree", "paths")


class _Leg(NamedTuple):
    """One trained response: the pieces of its context from segment `start` on, and its own."""

    turn: Turn
    weight: float
    start: int
    context: list[list[Piece]]
    response: list[Piece]
    reasoning: int


class _Chain(NamedTuple):
    """A dialogue that takes the short way.

    state: its plan and bindings, should it not work out. words, doubts: see Program.
    """

    chain_plan: ChainPlan
    weights: dict[int, float]
    state: tuple[TurnPlan, Bindings]
    words: list[TextKey]
    rereads: list


class GrownTree(NamedTuple):
    """A dialogue's tree. responses: (first node, node after the last, message) of each response, in order."""

    tree: TokenTree
    responses: list[tuple[int, int, int]]


@dataclass
class Encoder:
    """Turns dialogues into trees of at most `max_length` tokens, and counts what it meets.

    selection: which words count. over_length: what becomes of a longer one, see over_length.py. trees: "tree", or
    "paths" to lay branches out as chains. unfaithful, stops: see TemplateCompiler. refused: "error", or "skip" to leave
    out dialogues that the template refuses or that cannot be encoded exactly.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    max_length: int
    over_length: str = "error"
    loss_weights: LossWeights = field(default_factory=LossWeights)
    trees: str = "tree"
    unfaithful: str = "error"
    refused: str = "error"
    stops: Sequence[str] = ()
    stats: EncodingStats = field(default_factory=EncodingStats)

    def __post_init__(self):
        for key, value, allowed in (
            ("over_length", self.over_length, POLICIES),
            ("trees", self.trees, TREES),
            ("unfaithful", self.unfaithful, ("error", "skip", "emit")),
            ("refused", self.refused, ("error", "skip")),
        ):
            if value not in allowed:
                raise InputError(f"data.{key}={value!r}: use one of {', '.join(allowed)}")
        controls = self.tokenizer.controls
        for stop in self.stops:
            if stop not in controls:
                raise InputError(f"data.stops: {stop!r} is no control token of {self.tokenizer.source}")
        exactly = bool(self.stops)
        stops = self.stops or self.tokenizer.stops
        self._compiler = TemplateCompiler(self.template, controls, stops, exactly, self.unfaithful)
        self._spelling, self._text_ids = Spelling(controls), TextIds(self.tokenizer)
        self._chain_plans: WeakKeyDictionary[TurnPlan, ChainPlan | None] = WeakKeyDictionary()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a response."""
        return tuple(sorted(self.tokenizer.controls[stop].id for stop in self._compiler.controls.stops))

    def __call__(self, dialogue: Dialogue) -> TokenTree | None:
        """The tree of `dialogue`, or None where nothing of it trains; of several made of it, the first."""
        found = self.encode([dialogue])
        return found[0][1] if found else None

    def encode(self, dialogues: Sequence[Dialogue]) -> list[tuple[int, TokenTree]]:
        """(index of its dialogue, tree) of all that trains, in order.

        Raises InputError, naming file, line and message, for what cannot be encoded exactly or is too long, unless a
        policy says what becomes of it.
        """
        plans = [self._plan(dialogue) for dialogue in dialogues]
        self._tokenise(plans)
        chains, found = ChainBatch(), {}
        for index, (dialogue, plan) in enumerate(zip(dialogues, plans)):
            if type(plan) is _Chain:
                if self._lay_out(chains, plan, dialogue):
                    found[index] = None
                    continue
                # A tokenizer that reads the history otherwise than it was emitted, or a dialogue that is too long.
                plan = self._legs(dialogue, plan.weights, *plan.state)
                self._tokenise([plan])
            if plan:
                try:
                    found[index] = self._fit(dialogue, self._grow(dialogue, plan))
                except TemplateRefusal as error:
                    self._leave_out(dialogue, error)
        self._text_ids.forget()
        laid_out = iter(chains.trees())
        return [
            (index, tree) for index, trees in found.items() for tree in ((next(laid_out),) if trees is None else trees)
        ]

    def grow(self, dialogue: Dialogue, wanted: dict[int, float]) -> GrownTree:
        """The whole tree of a dialogue in which these messages are responses, of any length; counts nothing."""
        before, self.stats = self.stats, EncodingStats()
        try:
            bindings = self.template.bind(dialogue)
            turn_plan = self._compiler.compile(dialogue, tuple(wanted), bindings)
            legs = self._legs(dialogue, wanted, turn_plan, bindings)
            self._tokenise([legs])
            return self._grow(dialogue, legs)
        finally:
            self.stats = before

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """The tokens of the context of a reply to the last message: what a server would send the model.

        Raises InputError where the template refuses.
        """
        texts = self._text_ids
        return texts.prompt(texts.realise(self._compiler.prompt(dialogue), self.template.bind(dialogue)))

    def _plan(self, dialogue: Dialogue) -> "list[_Leg] | _Chain | None":
        """What is to be tokenised of a dialogue; None where nothing of it trains."""
        stats = self.stats
        stats.dialogues += 1
        wanted = self.loss_weights.weights(dialogue)
        if not wanted:
            stats.without_response += 1
            stats.note("without a response", dialogue.source)
            return None
        stats.responses += len(wanted)
        try:
            bindings = self.template.bind(dialogue)
            turn_plan = self._compiler.compile(dialogue, tuple(wanted), bindings)
            count_turns(stats, dialogue, turn_plan, self._spelling)
            chain_plan = self._chain_plan(turn_plan)
            if chain_plan is not None:
                words = chain_plan.words(dialogue)
                rereads = chain_plan.rereads(words, self.tokenizer)
                return _Chain(chain_plan, wanted, (turn_plan, bindings), words, rereads)
            legs = self._legs(dialogue, wanted, turn_plan, bindings)
        except TemplateRefusal as error:
            self._leave_out(dialogue, error)
            return None
        if not legs:
            stats.without_response += 1
        return legs

    def _chain_plan(self, turn_plan: TurnPlan) -> ChainPlan | None:
        """The way to make chains of all dialogues of a script; None where it takes the general one."""
        if not self.loss_weights.reasoning or self.loss_weights.weigh_per != "token":
            return None
        if turn_plan not in self._chain_plans:
            self._chain_plans[turn_plan] = compile_chain(turn_plan, self.tokenizer)
        return self._chain_plans[turn_plan]

    def _lay_out(self, chains: ChainBatch, plan: "_Chain", dialogue: Dialogue) -> bool:
        """Lays a chain out and counts it; False where it is none, or too long."""
        chain_plan, texts = plan.chain_plan, self._text_ids
        read = [texts.ids[key] for key in plan.words]
        if any(type(ids) is not list for ids in read):
            return False
        if not all(as_emitted(texts.ids[key], check, read) for key, check in plan.rereads):
            return False
        if chain_plan.length(read) > self.max_length:
            return False
        responses = chains.add(chain_plan, read, plan.weights)
        weights = {message: plan.weights[message] for message in chain_plan.messages}
        count_chain(self.stats, dialogue, chains.lengths[-1], responses, weights)
        first = chain_plan.steps[0].piece
        count_double_bos(self.stats, dialogue, first if type(first) is list else (), self.tokenizer.bos_id)
        for text in chain_plan.spoken:
            self.stats.altered += not texts.is_exact(plan.words[text])
        return True

    def _leave_out(self, dialogue: Dialogue, error: InputError) -> None:
        if self.refused == "error":
            raise error
        self.stats.refused += 1
        self.stats.note("refused", str(error))

    def _legs(
        self, dialogue: Dialogue, wanted: dict[int, float], turn_plan: TurnPlan, bindings: Bindings
    ) -> list[_Leg]:
        legs, walked, segments = [], 0, ()
        for turn in turn_plan.turns:
            segments = segments[: turn.keep] + turn.context
            walked = min(walked, turn.keep)
            if turn.trained:
                context = [self._text_ids.realise((segment,), bindings) for segment in segments[walked:]]
                reasoning = 0 if self.loss_weights.reasoning else len(
                    self._text_ids.realise(turn.response[: turn.reasoning], bindings)
                )  # fmt: skip
                response = self._text_ids.realise(turn.response, bindings)
                legs.append(_Leg(turn, wanted[turn.message], walked, context, response, reasoning))
                walked = len(segments)
        return legs

    def _tokenise(self, plans: Iterable["list[_Leg] | _Chain | None"]) -> None:
        """Tokenises all texts of `plans`, each once, many at a time."""
        self._text_ids.encode(key for plan in plans if plan for key in _keys(plan))

    def _grow(self, dialogue: Dialogue, legs: Sequence[_Leg]) -> GrownTree:
        builder, responses = TreeBuilder(), []
        depths = [0]  # of the context's segments on the builder's current path
        for leg in legs:
            turn = leg.turn
            del depths[leg.start + 1 :]
            for pieces in leg.context:
                depth = depths[-1]
                for message, ids in self._text_ids.owned(pieces, dialogue.source):
                    depth = builder.descend(depth, ids, message, turn.number)
                depths.append(depth)
            depth, first = depths[-1], len(builder)
            for place, piece in enumerate(leg.response):
                weight = leg.weight if place >= leg.reasoning else 0.0
                for message, ids in self._text_ids.owned((piece,), dialogue.source):
                    depth = builder.descend(depth, ids, message, turn.number, weight)
            responses.append((first, len(builder), turn.message))
            self.stats.altered += self._is_altered(leg.response)
        if not builder.is_chain and dialogue.parents is None:
            self.stats.not_prefix_preserving += 1
            self.stats.note("not_prefix_preserving", dialogue.source)
        tree = builder.build()
        if self.loss_weights.weigh_per != "token":
            _share_out(tree, responses, self.loss_weights.weigh_per)
        return GrownTree(tree, responses)

    def _is_altered(self, response: Sequence[Piece]) -> bool:
        return not all(self._text_ids.is_exact(piece.key) for piece in response if type(piece) is TextPiece)

    def _fit(self, dialogue: Dialogue, grown: GrownTree) -> list[TokenTree]:
        """What of a tree is kept under the policy for long ones, as one or more trees; and counted."""
        stats, trees = self.stats, [grown.tree]
        if self._measure(grown.tree) > self.max_length:
            wanted = self.loss_weights.weights(dialogue)
            wanted = {message: wanted[message] for _, _, message in grown.responses}
            trees = shorten(self.over_length, dialogue, wanted, self.grow, self._measure, self.max_length)
            count_over_length(stats, grown.tree, len(grown.responses), trees)
        stats.kept += bool(trees)
        for tree in trees:
            count_tree(stats, dialogue, tree)
            count_double_bos(stats, dialogue, tree.tokens_N[:2].tolist(), self.tokenizer.bos_id)
        return trees if self.trees == "tree" else [chain for tree in trees for chain in expand(tree)]

    def _measure(self, tree: TokenTree) -> int:
        """The slots that the longest piece of a tree takes, as it is laid out."""
        return len(tree) if self.trees == "tree" else int(positions(tree.parents_N).max()) + 1


def _keys(plan: "list[_Leg] | _Chain") -> Iterator[TextKey]:
    """The texts that are to be tokenised."""
    if type(plan) is _Chain:
        yield from plan.words
        yield from (key for key, _ in plan.rereads)
    else:
        for leg in plan:
            for pieces in (*leg.context, leg.response):
                yield from (piece.key for piece in pieces if type(piece) is TextPiece)


def _share_out(tree: TokenTree, responses: Sequence[tuple[int, int, int]], per: str) -> None:
    """Divides every weight by the number of supervised tokens of its response, or of the dialogue."""
    mask = tree.response_mask_N
    total = max(np.count_nonzero(mask), 1)
    for first, end, _ in responses:
        mask[first:end] /= total if per == "dialogue" else max(np.count_nonzero(mask[first:end]), 1)
