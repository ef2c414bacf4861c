"""A dialogue as a tree of tokens that says exactly which words the model learns to say, in which contexts.

The tree is the union of all paths context_k + response_k (mtsft/template/compile.py says what they are): contexts are
tokenized as a server would, responses by themselves, their stop included. Where every context_{k+1} begins with
context_k + response_k it is one chain; where it does not (a template rewrites history, a dialogue has several replies
to one message, a tokenizer reads a turn in the history otherwise than it was emitted) it branches, and the objective
stays the same sum.

Two ways lead there. response_plan.py takes any dialogue; chain_plan.py takes many dialogues of one structure whose
tokens make chains, which most are, and gives the same 2.5 to 2.9 times as fast.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from mtsft.config import DataConfig
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.chain_plan import ChainBatch, ChainPlan, Reread, as_emitted, compile_chain
from mtsft.encoding.char_weights import CharRules
from mtsft.encoding.loss_weights import check_weights, chosen_responses, response_weights
from mtsft.encoding.over_length import POLICIES, shorten
from mtsft.encoding.reply_tokens import ReplyTokens
from mtsft.encoding.response_plan import ResponsePlan, grow_tree, plan_responses, text_keys
from mtsft.encoding.spelling import SpelledControls
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.text_ids import TextIds, TextKey
from mtsft.encoding.token_tree import FORMS, GrownTree, TokenTree, TreeColumns, longest_piece
from mtsft.encoding.weight_rules import weight_rules
from mtsft.errors import InputError
from mtsft.template.chat_template import ChatTemplate, TemplateRefusal
from mtsft.template.compile import TemplateCompiler
from mtsft.template.placeholders import Bindings
from mtsft.template.spans import TurnPlan
from mtsft.tokenizer.base import Tokenizer

_MOST_STRUCTURES = 2000  # that are kept


class _Texts(NamedTuple):
    """A dialogue of nothing but messages in order, column by column; see `Message` for the last five."""

    roles: tuple[str, ...]
    contents: tuple[str, ...]
    weights: tuple[float, ...]
    fields: tuple
    parts: tuple
    others: tuple
    spans: tuple


class _Structure(NamedTuple):
    """What all dialogues share that are texts in these roles and no more, where the template asks nothing of the words.

    Attributes:
        weights: of the responses, by message.
        rules: names of the weight rules that are for them, each once a response.
        roles: of the messages that are responses.
        turn_plan, chain_plan: of all of them.
    """

    weights: dict[int, float]
    rules: tuple[str, ...]
    roles: tuple[str, ...]
    turn_plan: TurnPlan
    chain_plan: ChainPlan


class _PlannedDialogue(NamedTuple):
    """A dialogue that is to become a chain, unless its tokens turn out otherwise.

    Attributes:
        structure: what it shares with others.
        words: its texts, as `ChainPlan.words` has them.
        rereads: its texts that must be read in the history as they were emitted, see `ChainPlan.rereads`.
    """

    structure: _Structure
    words: list[str]
    rereads: list[tuple[TextKey, Reread]]


_Plan = _PlannedDialogue | list[ResponsePlan]


@dataclass
class Encoder:
    """Turns dialogues into trees of at most `sequence_length` tokens.

    What it meets is returned, not kept; it remembers plans of dialogues and ids of texts, which change no result.

    Attributes:
        template, tokenizer: as ChatFormat.open gives them.
        config: which messages are responses, what their tokens weigh, and what becomes of dialogues that are too long,
            branch, or cannot be rendered faithfully. `sequence_length` bounds a tree; or a path where `trees` is
            "paths" or "responses".
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    config: DataConfig

    def __post_init__(self):
        config = self.config
        for key, allowed in (
            ("over_length", POLICIES),
            ("trees", tuple(FORMS)),
            ("unfaithful", ("error", "skip", "emit")),
            ("refused", ("error", "skip")),
        ):
            if getattr(config, key) not in allowed:
                raise InputError(f"data.{key}={getattr(config, key)!r}: use one of {', '.join(allowed)}")
        check_weights(config)
        self._rules = weight_rules(config.weight_rules)
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
        self._char_rules = CharRules(self._rules, self._compiler.marks, config.train_reasoning)
        replies = ReplyTokens(controls, ends, self._compiler.marks, config.added_tokens_in_replies)
        self._spelled_controls, self._texts = SpelledControls(controls, replies), TextIds(self.tokenizer, replies)
        self._structures: dict[tuple[str, ...], _Structure] = {}  # by the roles of the messages
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

    @property
    def reasoning_marks(self) -> tuple[str, ...]:
        """All that may stand before or after a thought."""
        return tuple(mark for pair in self._compiler.marks.pairs for mark in pair)

    def encode(self, dialogues: Sequence[Dialogue]) -> tuple[list[tuple[int, TokenTree]], EncodingStats]:
        """The trees of dialogues, and what became of every one of them.

        Returns:
            trees: (index of its dialogue, tree) of all that trains, in order.
            stats: counts of all of `dialogues`.

        Raises:
            InputError: naming file, line and message, for what cannot be encoded exactly or is too long, unless a
                policy says what becomes of it.
        """
        indices, columns, stats = self.encode_columns(dialogues)
        return list(zip(indices, columns.trees())), stats

    def encode_columns(self, dialogues: Sequence[Dialogue]) -> tuple[list[int], TreeColumns, EncodingStats]:
        """As `encode`, the trees laid end to end: (index of the dialogue of each, the trees, counts)."""
        stats = EncodingStats()
        plans = self._plan_all(dialogues, stats)
        self._tokenize(plans)  # every text once, many at a time
        chains, trees_of = ChainBatch(), {}  # trees_of: by dialogue; None for a chain
        for index, (dialogue, plan) in enumerate(zip(dialogues, plans)):
            if type(plan) is _PlannedDialogue:
                if self._add_chain(chains, plan, dialogue, stats):
                    trees_of[index] = None
                    continue
                bindings = self.template.bind(dialogue)
                plan = self._plan_responses(plan.structure.turn_plan, plan.structure.weights, dialogue, bindings)
                self._tokenize([plan])
            if plan:
                try:
                    trees_of[index] = self._fit(dialogue, self._grow(dialogue, plan), stats)
                except TemplateRefusal as error:
                    self._leave_out(dialogue, error, stats)
        self._texts.forget()
        columns, responses = chains.columns()
        stats.count_chains(columns.lengths, responses, np.array(chains.weights, np.float32), chains.roles)
        if len(chains.lengths) == len(trees_of) and self.config.trees != "responses":
            return list(trees_of), columns, stats
        cut = map(FORMS[self.config.trees], columns.trees())
        trees = [(index, tree) for index, made in trees_of.items() for tree in (next(cut) if made is None else made)]
        return [index for index, _ in trees], TreeColumns.of([tree for _, tree in trees]), stats

    def __call__(self, dialogue: Dialogue) -> TokenTree | None:
        """The tree of one dialogue, or None where nothing of it trains; of several made of it, the first."""
        trees, _ = self.encode([dialogue])
        return trees[0][1] if trees else None

    def grow(self, dialogue: Dialogue, weights: dict[int, float]) -> GrownTree:
        """The whole tree of a dialogue, of any length, in which these messages are responses of these weights."""
        bindings = self.template.bind(dialogue)
        turn_plan = self._compiler.compile(dialogue, tuple(weights), bindings)
        responses = self._plan_responses(turn_plan, weights, dialogue, bindings)
        self._tokenize([responses])
        return self._grow(dialogue, responses)

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """The tokens of the context of a reply to the last message: what a server would send the model.

        Raises InputError where the template refuses.
        """
        pieces = self._texts.pieces(self._compiler.prompt(dialogue), self.template.bind(dialogue))
        return self._texts.prompt(pieces)

    # What is to be tokenized

    def _plan_all(self, dialogues: Sequence[Dialogue], stats: EncodingStats) -> list[_Plan | None]:
        """What is to be tokenized of each dialogue.

        Most dialogues are texts in turn, under a template that asks nothing of them: all that was found out about the
        first one in the same roles holds for the others, but for words that spell a control token.
        """
        columns = [_texts_of(dialogue) for dialogue in dialogues]
        spells = self._spelled_controls.are_in
        no_one_spells = not spells([text for texts in columns if texts for text in texts.contents])
        reads_words = self._rules.read_contents
        plans: list[_Plan | None] = []
        for dialogue, texts in zip(dialogues, columns):
            structure = self._structures.get(texts.roles) if texts else None
            is_special = not (no_one_spells or not spells(texts.contents)) if structure else True
            if is_special or (reads_words and self._weighs_words(dialogue)):
                plans.append(self._plan(dialogue, texts, stats))
                continue
            stats.dialogues += 1
            stats.responses += len(structure.weights)
            if structure.rules:
                stats.weight_rules.update(structure.rules)
            plans.append(self._plan_chain(structure, texts.contents))
        return plans

    def _plan(self, dialogue: Dialogue, texts: _Texts | None, stats: EncodingStats) -> _Plan | None:
        """What is to be tokenized of a dialogue; nothing, or None, where nothing of it trains."""
        stats.dialogues += 1
        if dialogue.others or any(m.others for m in dialogue.messages):
            stats.count_unread(dialogue, self.template.unread(dialogue))
        chosen = chosen_responses(dialogue, self.config)
        weights, rules = self._rules.of_replies(dialogue, chosen)
        stats.weight_rules.update(rules)
        stats.count_untrained_spans(dialogue, chosen)
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
            weighs_words = self._weighs_words(dialogue)
            is_special = any(is_token for _, is_token in spelled) or self._weighs_characters(dialogue, weights)
            chain_plan = None if is_special else self._chain_plan(turn_plan)
            if chain_plan is not None:
                roles = tuple(dialogue.messages[message].role for message in chain_plan.messages)
                structure = _Structure(weights, tuple(rules), roles, turn_plan, chain_plan)
                if texts and not turn_plan.guards and turn_plan.is_faithful and not weighs_words:
                    if len(self._structures) >= _MOST_STRUCTURES:
                        self._structures.clear()
                    self._structures[texts.roles] = structure
                return self._plan_chain(structure, [message.content for message in dialogue.messages])
            responses = self._plan_responses(turn_plan, weights, dialogue, bindings)
            stats.weight_rules.update(name for plan in responses for name in plan.chars.rules)
        except TemplateRefusal as error:
            self._leave_out(dialogue, error, stats)
            return None
        stats.without_response += not responses
        return responses

    def _plan_chain(self, structure: _Structure, contents: Sequence[str]) -> _PlannedDialogue:
        chain_plan = structure.chain_plan
        words = chain_plan.words(contents)
        return _PlannedDialogue(structure, words, chain_plan.rereads(words, self.tokenizer))

    def _chain_plan(self, turn_plan: TurnPlan) -> ChainPlan | None:
        """The chain of all dialogues with these turns; None where they take the general path."""
        is_plain = self.config.train_reasoning and self._rules.thinking is None and self.config.weigh_per == "token"
        if not is_plain:
            return None
        if turn_plan not in self._chain_plans:
            self._chain_plans[turn_plan] = compile_chain(turn_plan, self.tokenizer)
        return self._chain_plans[turn_plan]

    def _plan_responses(
        self, turn_plan: TurnPlan, weights: dict[int, float], dialogue: Dialogue, bindings: Bindings
    ) -> list[ResponsePlan]:
        return plan_responses(turn_plan, weights, dialogue, bindings, self._texts, self._char_rules)

    def _weighs_words(self, dialogue: Dialogue) -> bool:
        """Whether a weight rule is for words of a dialogue, so that it has no weights in common with others."""
        return self._rules.read_contents and self._rules.match_content(
            dialogue, chosen_responses(dialogue, self.config)
        )

    def _weighs_characters(self, dialogue: Dialogue, weights: Mapping[int, float]) -> bool:
        """Whether the characters of a response may differ in weight."""
        return any(
            message.spans is not None or self._rules.of_text(message.content or "", dialogue.source)[1]
            for message in (dialogue.messages[index] for index in weights)
        )

    def _tokenize(self, plans: Iterable[_Plan | None]) -> None:
        """Tokenizes all texts of `plans`."""
        texts: tuple[list[str], ...] = ([], [], [])  # by edge
        for plan in plans:
            if type(plan) is _PlannedDialogue:
                for text, edge in zip(plan.words, plan.structure.chain_plan.edges):
                    texts[edge].append(text)
                for (text, edge), _ in plan.rereads:
                    texts[edge].append(text)
            elif plan:
                for text, edge in text_keys(plan):
                    texts[edge].append(text)
        for edge, of_edge in enumerate(texts):
            self._texts.encode(of_edge, edge)

    # What becomes of the tokens

    def _add_chain(self, chains: ChainBatch, plan: _PlannedDialogue, dialogue: Dialogue, stats: EncodingStats) -> bool:
        """Adds a dialogue to the chains; False where its tokens make no chain, or one too long."""
        structure, words, rereads = plan
        chain_plan, texts = structure.chain_plan, self._texts
        known = texts.ids
        ids = [known[edge][text] for text, edge in zip(words, chain_plan.edges)]
        if texts.have_errors and any(type(one) is not list for one in ids):
            return False
        if rereads and not all(as_emitted(known[edge][text], reread, ids) for (text, edge), reread in rereads):
            return False
        if not chains.add(chain_plan, ids, structure.weights, structure.roles, self.config.sequence_length):
            return False
        if chain_plan.double_bos:
            stats.count_double_bos(dialogue, chain_plan.known[0], self.tokenizer.bos_id)
        for text in () if texts.are_exact else chain_plan.response_texts:
            stats.altered += not texts.is_exact((words[text], chain_plan.edges[text]))
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
        return [piece for tree in trees for piece in FORMS[self.config.trees](tree)]

    def _slots(self, tree: TokenTree) -> int:
        """The slots of a row that the longest piece of a tree takes."""
        return longest_piece(tree, self.config.trees)

    def _leave_out(self, dialogue: Dialogue, error: InputError, stats: EncodingStats) -> None:
        if self.config.refused == "error":
            raise error
        stats.refused += 1
        stats.note("refused", str(error))


def parse_stops(text: str) -> tuple[str, ...]:
    """The tokens that data.stops names, which are separated by commas."""
    return tuple(stop.strip() for stop in text.split(",") if stop.strip())


def _texts_of(dialogue: Dialogue) -> _Texts | None:
    """The messages of a dialogue by column; None where there is more to it than a role, a text and a weight of 1."""
    if not (dialogue.others is dialogue.tools is dialogue.variables is dialogue.parents is None and dialogue.messages):
        return None
    texts = _Texts(*zip(*dialogue.messages))
    count = len(texts.roles)
    nothing = (None,) * count
    is_plain = texts.weights == (1.0,) * count
    is_plain = is_plain and texts.fields == texts.parts == texts.others == texts.spans == nothing
    return texts if is_plain and None not in texts.contents else None
