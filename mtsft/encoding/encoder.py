"""A dialogue as a tree of tokens that says exactly which words the model learns to say, in which contexts.

The tree is the union of all paths context_k + response_k (mtsft/template/compile.py says what they are): contexts are
tokenized as a server would, responses by themselves, their stop included. Where every context_{k+1} begins with
context_k + response_k it is one chain; where it does not (a template rewrites history, a dialogue has several replies
to one message, a tokenizer reads a turn in the history otherwise than it was emitted) it branches, and the objective
stays the same sum.

Two ways lead there. response_plan.py takes any dialogue; chain_plan.py takes many dialogues of one structure whose
tokens make chains, which most are, and gives the same 2.5 to 2.9 times as fast.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

from mtsft.config import DataConfig
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.chain_plan import ChainBatch, ChainPlan, Reread, as_emitted, compile_chain
from mtsft.encoding.loss_weights import check_weights, response_weights
from mtsft.encoding.over_length import POLICIES, shorten
from mtsft.encoding.reply_tokens import ReplyTokens
from mtsft.encoding.response_plan import ResponsePlan, grow_tree, plan_responses, text_keys
from mtsft.encoding.spelling import SpelledControls
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.text_ids import TextIds, TextKey
from mtsft.encoding.token_tree import GrownTree, TokenTree, expand, positions
from mtsft.errors import InputError
from mtsft.template.chat_template import ChatTemplate, TemplateRefusal
from mtsft.template.compile import TemplateCompiler
from mtsft.template.placeholders import Bindings
from mtsft.template.spans import TurnPlan
from mtsft.tokenizer.base import Tokenizer

TREES = ("tree", "paths")


class _PlannedDialogue(NamedTuple):
    """A dialogue that is to become a chain, unless its tokens turn out otherwise.

    Attributes:
        chain_plan: the chain of all dialogues of its structure.
        weights: of its responses, by message.
        words: its texts, as `ChainPlan.words` has them.
        rereads: its texts that must be read in the history as they were emitted, see `ChainPlan.rereads`.
        turn_plan, bindings: what the general path starts from, should it be no chain.
    """

    chain_plan: ChainPlan
    weights: dict[int, float]
    words: list[TextKey]
    rereads: list[tuple[TextKey, Reread]]
    turn_plan: TurnPlan
    bindings: Bindings


_Plan = _PlannedDialogue | list[ResponsePlan]


@dataclass
class Encoder:
    """Turns dialogues into trees of at most `sequence_length` tokens.

    What it meets is returned, not kept; it remembers plans of dialogues and ids of texts, which change no result.

    Attributes:
        template, tokenizer: as ChatFormat.open gives them.
        config: which messages are responses, what their tokens weigh, and what becomes of dialogues that are too long,
            branch, or cannot be rendered faithfully. `sequence_length` bounds a tree; or a path where `trees` is
            "paths".
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    config: DataConfig

    def __post_init__(self):
        config = self.config
        for key, allowed in (
            ("over_length", POLICIES),
            ("trees", TREES),
            ("unfaithful", ("error", "skip", "emit")),
            ("refused", ("error", "skip")),
        ):
            if getattr(config, key) not in allowed:
                raise InputError(f"data.{key}={getattr(config, key)!r}: use one of {', '.join(allowed)}")
        check_weights(config)
        controls = self.tokenizer.controls
        stops = parse_stops(config.stops)
        for stop in stops:
            if stop not in controls:
                raise InputError(f"data.stops: {stop!r} is no control token of {self.tokenizer.source}")
        self._compiler = TemplateCompiler(
            self.template,
            controls,
            stops or self.tokenizer.stops,
            bool(stops),
            config.unfaithful,
            config.refused,
            config.reasoning_marks,
        )
        ends = {*self._compiler.controls.stops, *self.tokenizer.stops, *self.tokenizer.special_tokens.values()}
        replies = ReplyTokens(controls, ends, self._compiler.marks, config.added_tokens_in_replies)
        self._spelled_controls, self._texts = SpelledControls(controls, replies), TextIds(self.tokenizer, replies)
        self._chain_plans: WeakKeyDictionary[TurnPlan, ChainPlan | None] = WeakKeyDictionary()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a response."""
        return tuple(sorted(self.tokenizer.controls[stop].id for stop in self._compiler.controls.stops))

    @property
    def usual_stops(self) -> tuple[int, ...]:
        """`stop_ids`, the one that ends a reply first."""
        usual = self._compiler.controls.usual_stop
        first = [] if usual is None else [self.tokenizer.controls[usual].id]
        return tuple(dict.fromkeys([*first, *self.stop_ids]))

    def encode(self, dialogues: Sequence[Dialogue]) -> tuple[list[tuple[int, TokenTree]], EncodingStats]:
        """The trees of dialogues, and what became of every one of them.

        Returns:
            trees: (index of its dialogue, tree) of all that trains, in order.
            stats: counts of all of `dialogues`.

        Raises:
            InputError: naming file, line and message, for what cannot be encoded exactly or is too long, unless a
                policy says what becomes of it.
        """
        stats = EncodingStats()
        plans = [self._plan(dialogue, stats) for dialogue in dialogues]
        self._tokenize(plans)  # every text once, many at a time
        chains, trees_of = ChainBatch(), {}  # trees_of: by dialogue; None for a chain, cut from the batch at the end
        for index, (dialogue, plan) in enumerate(zip(dialogues, plans)):
            if type(plan) is _PlannedDialogue:
                if self._add_chain(chains, plan, dialogue, stats):
                    trees_of[index] = None
                    continue
                plan = self._plan_responses(plan.turn_plan, plan.weights, plan.bindings)
                self._tokenize([plan])
            if plan:
                try:
                    trees_of[index] = self._fit(dialogue, self._grow(dialogue, plan), stats)
                except TemplateRefusal as error:
                    self._leave_out(dialogue, error, stats)
        self._texts.forget()
        cut = iter(chains.trees())
        trees = [(index, tree) for index, made in trees_of.items() for tree in ((next(cut),) if made is None else made)]
        return trees, stats

    def __call__(self, dialogue: Dialogue) -> TokenTree | None:
        """The tree of one dialogue, or None where nothing of it trains; of several made of it, the first."""
        trees, _ = self.encode([dialogue])
        return trees[0][1] if trees else None

    def grow(self, dialogue: Dialogue, weights: dict[int, float]) -> GrownTree:
        """The whole tree of a dialogue, of any length, in which these messages are responses of these weights."""
        bindings = self.template.bind(dialogue)
        turn_plan = self._compiler.compile(dialogue, tuple(weights), bindings)
        responses = self._plan_responses(turn_plan, weights, bindings)
        self._tokenize([responses])
        return self._grow(dialogue, responses)

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """The tokens of the context of a reply to the last message: what a server would send the model.

        Raises InputError where the template refuses.
        """
        pieces = self._texts.pieces(self._compiler.prompt(dialogue), self.template.bind(dialogue))
        return self._texts.prompt(pieces)

    # What is to be tokenized

    def _plan(self, dialogue: Dialogue, stats: EncodingStats) -> _Plan | None:
        """What is to be tokenized of a dialogue; nothing, or None, where nothing of it trains."""
        stats.dialogues += 1
        if dialogue.others or any(m.others for m in dialogue.messages):
            stats.count_unread(dialogue, self.template.unread(dialogue))
        weights = response_weights(dialogue, self.config)
        if not weights:
            stats.without_response += 1
            stats.note("without a response", dialogue.source)
            return None
        stats.responses += len(weights)
        try:
            bindings = self.template.bind(dialogue)
            turn_plan = self._compiler.compile(dialogue, tuple(weights), bindings)
            spelled = list(self._spelled_controls.messages(dialogue))
            stats.count_turns(dialogue, turn_plan, spelled)
            chain_plan = None if any(is_token for _, is_token in spelled) else self._chain_plan(turn_plan)
            if chain_plan is not None:
                words = chain_plan.words(dialogue)
                rereads = chain_plan.rereads(words, self.tokenizer)
                return _PlannedDialogue(chain_plan, weights, words, rereads, turn_plan, bindings)
            responses = self._plan_responses(turn_plan, weights, bindings)
        except TemplateRefusal as error:
            self._leave_out(dialogue, error, stats)
            return None
        stats.without_response += not responses
        return responses

    def _chain_plan(self, turn_plan: TurnPlan) -> ChainPlan | None:
        """The chain of all dialogues with these turns; None where they take the general path."""
        if not self.config.train_reasoning or self.config.weigh_per != "token":
            return None
        if turn_plan not in self._chain_plans:
            self._chain_plans[turn_plan] = compile_chain(turn_plan, self.tokenizer)
        return self._chain_plans[turn_plan]

    def _plan_responses(self, turn_plan: TurnPlan, weights: dict[int, float], bindings: Bindings) -> list[ResponsePlan]:
        untrained = None if self.config.train_reasoning else self._compiler.marks
        return plan_responses(turn_plan, weights, bindings, self._texts, untrained)

    def _tokenize(self, plans: Iterable[_Plan | None]) -> None:
        """Tokenizes all texts of `plans`."""
        self._texts.encode(key for plan in plans if plan for key in _keys(plan))

    # What becomes of the tokens

    def _add_chain(self, chains: ChainBatch, plan: _PlannedDialogue, dialogue: Dialogue, stats: EncodingStats) -> bool:
        """Adds a dialogue to the chains and counts it; False where its tokens make no chain, or one too long."""
        chain_plan, texts = plan.chain_plan, self._texts
        ids = [texts.ids[key] for key in plan.words]
        if any(type(one) is not list for one in ids):
            return False
        if not all(as_emitted(texts.ids[key], reread, ids) for key, reread in plan.rereads):
            return False
        if chain_plan.length(ids) > self.config.sequence_length:
            return False
        responses = chains.add(chain_plan, ids, plan.weights)
        weights = {message: plan.weights[message] for message in chain_plan.messages}
        stats.count_chain(dialogue, chains.lengths[-1], responses, weights)
        first = chain_plan.steps[0].ids
        stats.count_double_bos(dialogue, first if type(first) is list else (), self.tokenizer.bos_id)
        for text in chain_plan.response_texts:
            stats.altered += not texts.is_exact(plan.words[text])
        return True

    def _grow(self, dialogue: Dialogue, responses: Sequence[ResponsePlan]) -> GrownTree:
        return grow_tree(responses, self._texts, dialogue.source, self.config.weigh_per)

    def _fit(self, dialogue: Dialogue, grown: GrownTree, stats: EncodingStats) -> list[TokenTree]:
        """What of a tree is kept under the policy for long ones, as one or more trees; and counted."""
        stats.altered += grown.altered
        if dialogue.parents is None and not grown.is_chain:
            stats.not_prefix_preserving += 1
            stats.note("not_prefix_preserving", dialogue.source)
        trees = [grown.tree]
        if self._slots(grown.tree) > self.config.sequence_length:
            weights = response_weights(dialogue, self.config)
            weights = {message: weights[message] for _, _, message in grown.responses}
            policy, longest = self.config.over_length, self.config.sequence_length
            trees = shorten(policy, dialogue, weights, self.grow, self._slots, longest)
            stats.count_over_length(dialogue, grown.tree, len(grown.responses), trees)
        stats.kept += bool(trees)
        for tree in trees:
            stats.count_tree(dialogue, tree)
            stats.count_double_bos(dialogue, tree.tokens_N[:2].tolist(), self.tokenizer.bos_id)
        return trees if self.config.trees == "tree" else [chain for tree in trees for chain in expand(tree)]

    def _slots(self, tree: TokenTree) -> int:
        """The slots of a row that the longest piece of a tree takes."""
        return len(tree) if self.config.trees == "tree" else int(positions(tree.parents_N).max()) + 1

    def _leave_out(self, dialogue: Dialogue, error: InputError, stats: EncodingStats) -> None:
        if self.config.refused == "error":
            raise error
        stats.refused += 1
        stats.note("refused", str(error))


def parse_stops(text: str) -> tuple[str, ...]:
    """The tokens that data.stops names, which are separated by commas."""
    return tuple(stop.strip() for stop in text.split(",") if stop.strip())


def _keys(plan: _Plan) -> Iterator[TextKey]:
    """The texts that are to be tokenized."""
    if type(plan) is _PlannedDialogue:
        yield from plan.words
        yield from (key for key, _ in plan.rereads)
    else:
        yield from text_keys(plan)
