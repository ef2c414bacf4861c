"""A dialogue as a tree of tokens that says exactly which words the model learns to say, in which contexts.

The tree is the union of all paths context_k + response_k (mtsft/dialogue/script.py says what they are): contexts are
tokenised as a server would, responses by themselves, their stop included. Where every context_{k+1} begins with
context_k + response_k it is one chain; where it does not (a template rewrites history, a dialogue has several replies
to one message, a tokenizer reads a turn in the history otherwise than it was emitted) it branches, and the objective
stays the same sum.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from mtsft.dialogue.chains import Chains, Key, Program, as_emitted, compile_program
from mtsft.dialogue.counts import Counts
from mtsft.dialogue.over_length import POLICIES, shorten
from mtsft.dialogue.schema import Dialogue
from mtsft.dialogue.script import ScriptWriter
from mtsft.dialogue.segments import Script, Segment, Turn
from mtsft.dialogue.selection import Selection
from mtsft.dialogue.template import ChatTemplate, Records
from mtsft.dialogue.tokenizer import CONTINUATION, WHITESPACE, Tokenizer
from mtsft.dialogue.tree import TokenTree, TreeBuilder, expand, is_one_chain, positions, response_ends
from mtsft.dialogue.writing import TemplateRefusal
from mtsft.errors import InputError

TREES = ("tree", "paths")
_REASONING = re.compile(r"\A<think>.*?</think>", re.DOTALL)


class _Words(NamedTuple):
    """A stretch of text to be tokenised. parts: (text, message or -1) of all that it is made of."""

    key: Key
    parts: tuple[tuple[str, int], ...]


_Piece = int | _Words  # a control token's id, or text


class _Leg(NamedTuple):
    """One trained response: the pieces of its context from segment `start` on, and its own."""

    turn: Turn
    weight: float
    start: int
    context: list[list[_Piece]]
    response: list[_Piece]
    reasoning: int


class _Chain(NamedTuple):
    """A dialogue that takes the short way.

    state: its script, records and known values, should it not work out. words, doubts: see Program.
    """

    program: Program
    weights: dict[int, float]
    state: tuple[Script, dict, dict]
    words: list[Key]
    doubts: list


class Grown(NamedTuple):
    """A dialogue's tree. responses: (first node, node after the last, message) of each response, in order."""

    tree: TokenTree
    responses: list[tuple[int, int, int]]


@dataclass
class Encoder:
    """Turns dialogues into trees of at most `max_length` tokens, and counts what it meets.

    selection: which words count. over_length: what becomes of a longer one, see over_length.py. trees: "tree", or
    "paths" to lay branches out as chains. unfaithful, stops: see ScriptWriter. refused: "error", or "skip" to leave out
    dialogues that the template refuses or that cannot be encoded exactly.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    max_length: int
    over_length: str = "error"
    selection: Selection = field(default_factory=Selection)
    trees: str = "tree"
    unfaithful: str = "error"
    refused: str = "error"
    stops: Sequence[str] = ()
    counts: Counts = field(default_factory=Counts)

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
        self._write = ScriptWriter(self.template, controls, stops, exactly, self.unfaithful)
        self._spelled = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        self._firsts = {text[0] for text in controls}
        self._thinks = "</think>" in controls  # as the marks of a reply's reasoning, not as words of its text
        self._literals: dict[Key, list[int]] = {}
        self._ids: dict[Key, list[int] | InputError] = {}
        self._exact: dict[Key, bool] = {}
        self._programs: WeakKeyDictionary[Script, Program | None] = WeakKeyDictionary()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a response."""
        return tuple(sorted(self.tokenizer.controls[stop].id for stop in self._write.controls.stops))

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
        chains, found = Chains(), {}
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
        self._ids.clear()
        self._exact.clear()
        laid_out = iter(chains.trees())
        return [
            (index, tree) for index, trees in found.items() for tree in ((next(laid_out),) if trees is None else trees)
        ]

    def grow(self, dialogue: Dialogue, wanted: dict[int, float]) -> Grown:
        """The whole tree of a dialogue in which these messages are responses, of any length; counts nothing."""
        before, self.counts = self.counts, Counts()
        try:
            records, known = Records(self.template, dialogue), {}
            script = self._write(dialogue, tuple(wanted), records, known)
            legs = self._legs(dialogue, wanted, script, records, known)
            self._tokenise([legs])
            return self._grow(dialogue, legs)
        finally:
            self.counts = before

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """The tokens of the context of a reply to the last message: what a server would send the model.

        Raises InputError where the template refuses.
        """
        pieces = self._realise(self._write.prompt(dialogue), Records(self.template, dialogue), {})
        ids = []
        for piece in pieces:
            ids += [piece] if type(piece) is int else self.tokenizer.encode_batch([piece.key[0]], piece.key[1])[0]
        return ids

    def _plan(self, dialogue: Dialogue) -> "list[_Leg] | _Chain | None":
        """What is to be tokenised of a dialogue; None where nothing of it trains."""
        counts = self.counts
        counts.dialogues += 1
        wanted = self.selection.weights(dialogue)
        if not wanted:
            counts.without_response += 1
            counts.note("without a response", dialogue.source)
            return None
        counts.responses += len(wanted)
        try:
            records, known = Records(self.template, dialogue), {}
            script = self._write(dialogue, tuple(wanted), records, known)
            self._count_script(dialogue, script)
            program = self._program(script)
            if program is not None:
                words = program.words(dialogue)
                doubts = program.doubts(words, self.tokenizer)
                return _Chain(program, wanted, (script, records, known), words, doubts)
            legs = self._legs(dialogue, wanted, script, records, known)
        except TemplateRefusal as error:
            self._leave_out(dialogue, error)
            return None
        if not legs:
            counts.without_response += 1
        return legs

    def _program(self, script: Script) -> Program | None:
        """The way to make chains of all dialogues of a script; None where it takes the general one."""
        if not self.selection.reasoning or self.selection.weigh_per != "token":
            return None
        if script not in self._programs:
            self._programs[script] = compile_program(script, self.tokenizer)
        return self._programs[script]

    def _lay_out(self, chains: Chains, plan: "_Chain", dialogue: Dialogue) -> bool:
        """Lays a chain out and counts it; False where it is none, or too long."""
        read = [self._ids[key] for key in plan.words]
        if any(type(ids) is not list for ids in read):
            return False
        if not all(as_emitted(self._ids[key], check, read) for key, check in plan.doubts):
            return False
        if plan.program.length(read) > self.max_length:
            return False
        responses = chains.add(plan.program, read, plan.weights)
        counts, length = self.counts, chains.lengths[-1]
        counts.kept += 1
        counts.tokens += length
        counts.chain_tokens += length
        for (turn, tokens, end), message in zip(responses, plan.program.messages):
            counts.by_turn[turn] += tokens
            counts.by_role[dialogue.messages[message].role] += tokens
            counts.supervised_tokens += tokens
            counts.supervised_weight += tokens * plan.weights[message]
            counts.response_tokens += end
        first = plan.program.steps[0].piece
        self._count_double_bos(dialogue, first if type(first) is list else ())
        for text in plan.program.spoken:
            counts.altered += not self._is_exact(plan.words[text])
        return True

    def _is_exact(self, key: Key) -> bool:
        """Whether a text's tokens decode to it."""
        exact = self._exact.get(key)
        if exact is None:
            text, place = key
            if self.tokenizer.spells_ascii and text.isascii():
                return True
            said = self.tokenizer.decode(self._ids[key])
            # Some tokenizers write a space after a control token: the server's, and so the model's, way to begin.
            exact = self._exact[key] = said == text or (place != CONTINUATION and said == f" {text}")
        return exact

    def _leave_out(self, dialogue: Dialogue, error: InputError) -> None:
        if self.refused == "error":
            raise error
        self.counts.refused += 1
        self.counts.note("refused", str(error))

    def _legs(
        self, dialogue: Dialogue, wanted: dict[int, float], script: Script, records: dict, known: dict
    ) -> list[_Leg]:
        legs, walked, segments = [], 0, ()
        for turn in script.turns:
            segments = segments[: turn.keep] + turn.context
            walked = min(walked, turn.keep)
            if turn.trained:
                context = [self._realise((segment,), records, known) for segment in segments[walked:]]
                reasoning = 0 if self.selection.reasoning else len(
                    self._realise(turn.response[: turn.reasoning], records, known)
                )  # fmt: skip
                response = self._realise(turn.response, records, known)
                legs.append(_Leg(turn, wanted[turn.message], walked, context, response, reasoning))
                walked = len(segments)
        return legs

    def _count_script(self, dialogue: Dialogue, script: Script) -> None:
        counts = self.counts
        for turn in script.turns:
            if turn.unfaithful:
                counts.unfaithful[turn.unfaithful] += 1
                counts.note(f"unfaithful: {turn.unfaithful}", f"{dialogue.source}: message {turn.message + 1}")
                counts.skipped_turns += not turn.trained
        for message, name in script.lost:
            counts.lost[name] += 1
            place = f": message {message + 1}" if message >= 0 else ""
            counts.note(f"lost: {name}", f"{dialogue.source}{place}")
        texts = [m.content or "" if not m.fields else f"{m.content}{m.fields}" for m in dialogue.messages]
        whole = "\n".join(texts)
        if any(first in whole for first in self._firsts) and self._spelled.search(whole):
            self._count_spelling(dialogue, texts)
        for i, message in enumerate(dialogue.messages):
            for call in (message.fields or {}).get("tool_calls") or ():
                if isinstance(call.get("function", {}).get("arguments"), str):
                    counts.malformed += 1
                    counts.note("malformed arguments", f"{dialogue.source}: message {i + 1}")

    def _count_spelling(self, dialogue: Dialogue, texts: Sequence[str]) -> None:
        for i, (message, text) in enumerate(zip(dialogue.messages, texts)):
            # The marks of a reply's reasoning are no words of its text.
            said = _REASONING.sub("", text) if self._thinks and message.role == "assistant" else text
            if self._spelled.search(said):
                self.counts.spelling += 1
                self.counts.note("spells a control token", f"{dialogue.source}: message {i + 1}")

    def _realise(self, segments: Iterable[Segment], records: dict, known: dict) -> list[_Piece]:
        """Segments with the words of a dialogue in place of symbols; empty stretches fall away."""
        pieces = []
        for segment in segments:
            if type(segment) is str:
                pieces.append(self.tokenizer.controls[segment].id)
                continue
            parts = [(p, -1) if type(p) is str else (p.value(records, known), p.owner) for p in segment.parts]
            if segment.lstrip or segment.rstrip:
                parts = _strip(parts, segment.lstrip, segment.rstrip)
            text = parts[0][0] if len(parts) == 1 else "".join(text for text, _ in parts)
            if text:
                pieces.append(_Words((text, segment.place), tuple(part for part in parts if part[0])))
        return pieces

    def _tokenise(self, plans: Iterable["list[_Leg] | _Chain | None"]) -> None:
        """Tokenises all texts of `plans`, each once, many at a time."""
        known = self._ids
        wanted: tuple[dict[str, None], ...] = ({}, {}, {})
        for plan in plans:
            if type(plan) is _Chain:
                for key in plan.words:
                    if key not in known:
                        wanted[key[1]][key[0]] = None
                for (text, place), _ in plan.doubts:
                    wanted[place][text] = None
            else:
                for leg in plan or ():
                    for pieces in (*leg.context, leg.response):
                        for piece in pieces:
                            if type(piece) is _Words:
                                self._want(piece, wanted)
        for place, texts in enumerate(wanted):
            if texts:
                known.update(zip(zip(texts, repeat(place)), self._encode_batch(list(texts), place)))

    def _want(self, words: _Words, wanted: Sequence[dict[str, None]]) -> None:
        (text, place), parts = words
        if words.key not in self._ids:
            wanted[place][text] = None
        for part, _ in parts[:-1]:
            if (part, place) not in self._literals:
                if len(self._literals) > 20_000:
                    self._literals.clear()
                self._literals[part, place] = self.tokenizer.encode_batch([part], place)[0]

    def _encode_batch(self, texts: list[str], place: int) -> list:
        try:
            return self.tokenizer.encode_batch(texts, place)
        except InputError:
            return [self._encode_or_error(text, place) for text in texts]

    def _encode_or_error(self, text: str, place: int) -> list[int] | InputError:
        try:
            return self.tokenizer.encode_batch([text], place)[0]
        except InputError as error:
            return error

    def _grow(self, dialogue: Dialogue, legs: Sequence[_Leg]) -> Grown:
        builder, responses = TreeBuilder(), []
        depths = [0]  # of the context's segments on the builder's current path
        for leg in legs:
            turn = leg.turn
            del depths[leg.start + 1 :]
            for pieces in leg.context:
                depth = depths[-1]
                for message, ids in self._owned(dialogue, pieces):
                    depth = builder.descend(depth, ids, message, turn.number)
                depths.append(depth)
            depth, first = depths[-1], len(builder)
            for place, piece in enumerate(leg.response):
                weight = leg.weight if place >= leg.reasoning else 0.0
                for message, ids in self._owned(dialogue, (piece,)):
                    depth = builder.descend(depth, ids, message, turn.number, weight)
            responses.append((first, len(builder), turn.message))
            self.counts.altered += self._is_altered(leg.response)
        if not builder.is_chain and dialogue.parents is None:
            self.counts.rewriting += 1
            self.counts.note("rewriting", dialogue.source)
        tree = builder.build()
        if self.selection.weigh_per != "token":
            _share_out(tree, responses, self.selection.weigh_per)
        return Grown(tree, responses)

    def _owned(self, dialogue: Dialogue, pieces: Iterable[_Piece]) -> Iterator[tuple[int, list[int]]]:
        """(whose words, ids) of pieces, in order; a token that reaches across a border goes with the later part."""
        for piece in pieces:
            if type(piece) is int:
                yield -1, [piece]
                continue
            whole = self._ids[piece.key]
            if type(whole) is not list:
                raise TemplateRefusal(f"{dialogue.source}: {whole}")
            start = 0
            for part, owner in piece.parts[:-1]:
                own = self._literals.get((part, piece.key[1]))
                if own is None:
                    own = self._literals[part, piece.key[1]] = self.tokenizer.encode_batch([part], piece.key[1])[0]
                end = start + len(own)
                if whole[start:end] != own:
                    end = start + next((i for i, (a, b) in enumerate(zip(own, whole[start:])) if a != b), 0)
                if end > start:
                    yield owner, whole[start:end]
                    start = end
            if start < len(whole):
                yield piece.parts[-1][1], whole[start:] if start else whole

    def _is_altered(self, response: Sequence[_Piece]) -> bool:
        return not all(self._is_exact(piece.key) for piece in response if type(piece) is _Words)

    def _fit(self, dialogue: Dialogue, grown: Grown) -> list[TokenTree]:
        """What of a tree is kept under the policy for long ones, as one or more trees; and counted."""
        counts, trees = self.counts, [grown.tree]
        if self._measure(grown.tree) > self.max_length:
            wanted = self.selection.weights(dialogue)
            wanted = {message: wanted[message] for _, _, message in grown.responses}
            trees = shorten(self.over_length, dialogue, wanted, self.grow, self._measure, self.max_length)
            left = sum(len(response_ends(tree)) for tree in trees)
            counts.over_length += 1
            counts.over_length_dropped += not trees
            counts.over_length_cut += bool(trees)
            counts.over_length_windows += max(len(trees) - 1, 0)
            counts.over_length_responses += len(grown.responses) - left
            supervised = sum(np.count_nonzero(tree.response_mask_N) for tree in trees)
            counts.over_length_supervised_tokens += int(np.count_nonzero(grown.tree.response_mask_N) - supervised)
        counts.kept += bool(trees)
        for tree in trees:
            self._count(dialogue, tree)
        return trees if self.trees == "tree" else [chain for tree in trees for chain in expand(tree)]

    def _measure(self, tree: TokenTree) -> int:
        """The slots that the longest piece of a tree takes, as it is laid out."""
        return len(tree) if self.trees == "tree" else int(positions(tree.parents_N).max()) + 1

    def _count(self, dialogue: Dialogue, tree: TokenTree) -> None:
        counts, mask = self.counts, tree.response_mask_N
        supervised = np.flatnonzero(mask)
        if is_one_chain(tree):
            counts.chain_tokens += len(tree)
            depths_N = range(len(tree))
        else:
            counts.branching += 1
            counts.chain_tokens += sum(map(len, expand(tree)))
            depths_N = positions(tree.parents_N)
        counts.response_tokens += sum(int(depths_N[end]) + 1 for end in response_ends(tree).tolist())
        counts.tokens += len(tree)
        counts.supervised_tokens += len(supervised)
        counts.supervised_weight += float(mask.sum(dtype="float64"))
        turns = tree.turn_ids_N[supervised]
        for turn, count in enumerate(np.bincount(turns).tolist()):
            if count:
                counts.by_turn[turn] += count
        # A stop belongs to the message whose words it follows.
        owners = tree.message_ids_N[supervised]
        last = np.maximum.accumulate(np.where(owners >= 0, np.arange(len(owners)), -1))
        owners = np.where(last >= 0, owners[last], -1)
        for message, count in zip(*(values.tolist() for values in np.unique(owners, return_counts=True))):
            counts.by_role[dialogue.messages[message].role if message >= 0 else "assistant"] += count
        self._count_double_bos(dialogue, tree.tokens_N[:2].tolist())

    def _count_double_bos(self, dialogue: Dialogue, first: Sequence[int]) -> None:
        if len(first) > 1 and first[0] == first[1] == self.tokenizer.bos_id:
            self.counts.double_bos += 1
            self.counts.note("double BOS", dialogue.source)


def _strip(parts: list[tuple[str, int]], left: bool, right: bool) -> list[tuple[str, int]]:
    """Parts without the white space at their ends that a control token eats."""
    parts = list(parts)
    while left and parts:
        text, owner = parts[0]
        parts[0] = (text.lstrip(WHITESPACE), owner)
        if parts[0][0]:
            break
        del parts[0]
    while right and parts:
        text, owner = parts[-1]
        parts[-1] = (text.rstrip(WHITESPACE), owner)
        if parts[-1][0]:
            break
        del parts[-1]
    return parts or [("", -1)]


def _share_out(tree: TokenTree, responses: Sequence[tuple[int, int, int]], per: str) -> None:
    """Divides every weight by the number of supervised tokens of its response, or of the dialogue."""
    mask = tree.response_mask_N
    total = max(np.count_nonzero(mask), 1)
    for first, end, _ in responses:
        mask[first:end] /= total if per == "dialogue" else max(np.count_nonzero(mask[first:end]), 1)
