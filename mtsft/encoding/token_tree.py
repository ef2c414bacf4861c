"""A dialogue as a tree of tokens: the union of its (context, response) paths, each shared prefix once.

tokens         p  q  r  s  t  u
parents       -1  0  1  2  3  2      the index of the token before it on its path
positions      0  1  2  3  4  3      depth in the tree
subtree_ends   6  6  6  5  5  6      exclusive: query q sees key k exactly when k <= q < subtree_ends[k]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtsft.dialogue.schema import path_from_root


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Tokens in depth-first order, N of them.

    Attributes:
        tokens_N: int32, ids.
        parents_N: int32, the index of the token before it on its path, -1 at a root.
        response_mask_N: float32, 0 for context, the weight for a response token.
        turn_ids_N: int32, the index among the assistant messages on its path of the response that a token is part of,
            or first leads to. Replies to one message share it.
        message_ids_N: int32, the message whose words a token is part of, -1 for text of the template.
        response_ids_N: int32, the message that is the response of turn_ids_N: one number a response, siblings too.
    """

    tokens_N: np.ndarray
    parents_N: np.ndarray
    response_mask_N: np.ndarray
    turn_ids_N: np.ndarray
    message_ids_N: np.ndarray
    response_ids_N: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_N)

    def head(self, count: int) -> "TokenTree":
        """The first `count` tokens: again a tree, since a parent always stands before its child."""
        return TokenTree(*(getattr(self, name)[:count] for name in self.__slots__))

    def chain(self, nodes: np.ndarray, response_mask_N: np.ndarray) -> "TokenTree":
        """The tokens `nodes`, each the parent of the next, with a mask of their own."""
        return TokenTree(
            self.tokens_N[nodes],
            np.arange(-1, len(nodes) - 1, dtype=np.int32),
            response_mask_N,
            self.turn_ids_N[nodes],
            self.message_ids_N[nodes],
            self.response_ids_N[nodes],
        )


class TreeColumns(NamedTuple):
    """Trees laid end to end, column by column, as a store keeps them.

    Attributes:
        lengths: int64 (T,), tokens of each tree.
        tokens_N, ...: the columns of all trees, as of TokenTree.
    """

    lengths: np.ndarray
    tokens_N: np.ndarray
    parents_N: np.ndarray
    response_mask_N: np.ndarray
    turn_ids_N: np.ndarray
    message_ids_N: np.ndarray
    response_ids_N: np.ndarray

    @classmethod
    def of(cls, trees: Sequence[TokenTree]) -> "TreeColumns":
        """The columns of trees."""
        empty = np.zeros(0, np.int32)
        columns = {
            name: np.concatenate([getattr(tree, name) for tree in trees] or [empty]) for name in TokenTree.__slots__
        }
        return cls(np.array([len(tree) for tree in trees], np.int64), **columns)

    def trees(self) -> list[TokenTree]:
        """The trees, which share memory."""
        ends = np.cumsum(self.lengths)
        columns = self[1:]
        return [
            TokenTree(*[column[a:b] for column in columns])
            for a, b in zip((ends - self.lengths).tolist(), ends.tolist())
        ]


class GrownTree(NamedTuple):
    """A whole dialogue's tree, and what was seen while it was grown.

    Attributes:
        tree: of any length.
        is_chain: whether every token follows the one before it.
        responses: (first node, node after the last, message) of each response, in order.
        altered: responses whose tokens do not decode to their text.
    """

    tree: TokenTree
    is_chain: bool
    responses: list[tuple[int, int, int]]
    altered: int


def positions(parents_N: np.ndarray) -> np.ndarray:
    """Depth of every token in its tree, int32 (N,): what rotary embeddings see."""
    positions_N = np.arange(len(parents_N), dtype=np.int32)
    for start, end in _runs(parents_N):
        parent = parents_N[start]
        depth = positions_N[parent] + 1 if parent >= 0 else 0
        positions_N[start:end] = np.arange(depth, depth + end - start)
    return positions_N


def subtree_ends(parents_N: np.ndarray) -> np.ndarray:
    """Where every token's subtree ends, exclusive, int32 (N,): the whole of the attention mask."""
    ends_N = np.full(len(parents_N), len(parents_N), np.int32)
    # The subtree of k ends at the first later token whose parent stands before k; runs are met last to first,
    # so that the first one overwrites the others.
    for start, _ in reversed(_runs(parents_N)):
        ends_N[parents_N[start] + 1 : start] = start
    return ends_N


def _runs(parents_N: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of the longest runs in which every token follows the one before it."""
    starts = np.flatnonzero(parents_N != np.arange(-1, len(parents_N) - 1))
    starts = [0, *starts.tolist()] if len(parents_N) and (not len(starts) or starts[0]) else starts.tolist()
    return list(zip(starts, [*starts[1:], len(parents_N)]))


def is_one_chain(tree: TokenTree) -> bool:
    """Whether every token follows the one before it."""
    return bool((tree.parents_N[1:] == np.arange(len(tree) - 1)).all())


def response_ends(tree: TokenTree) -> np.ndarray:
    """The last token of every response that is supervised, in order."""
    return _supervised_ends(tree)[1]


def _supervised_ends(tree: TokenTree) -> tuple[np.ndarray, np.ndarray]:
    """(first, last) supervised token of every response; what stands between them may be context in part."""
    # A response stands on a straight run of one number, behind context that leads to it and has the same number.
    goes_on = (tree.parents_N[1:] == np.arange(len(tree) - 1)) & (tree.response_ids_N[1:] == tree.response_ids_N[:-1])
    runs = np.append(0, np.cumsum(~goes_on)) if len(tree) else np.zeros(0, np.int64)
    supervised = np.flatnonzero(tree.response_mask_N)
    changes = np.diff(runs[supervised]) != 0
    if not len(supervised):
        return supervised, supervised
    return supervised[np.append(True, changes)], supervised[np.append(changes, True)]


def context_lengths(tree: TokenTree) -> dict[int, int]:
    """{message of a response that is supervised: tokens before the first that is}; a thought not trained is context."""
    starts = _supervised_ends(tree)[0]
    depths = positions(tree.parents_N)[starts]
    return dict(zip(tree.response_ids_N[starts].tolist(), depths.tolist()))


def response_path(tree: TokenTree, end: int) -> tuple[np.ndarray, int]:
    """(nodes from the root to `end`, how many of them are context) of the supervised response that ends there.

    The response begins with its first supervised token; what is context after that is part of it.
    """
    nodes = np.array(path_from_root(tree.parents_N.tolist(), end))
    starts, ends = _supervised_ends(tree)
    start = int(starts[np.searchsorted(ends, end)])
    return nodes, len(nodes) - 1 - (end - start)


def response_chain(tree: TokenTree, end: int) -> TokenTree:
    """The chain from the root to `end`, in which only the response that ends there is supervised."""
    nodes, start = response_path(tree, end)
    mask = tree.response_mask_N[nodes]
    mask[:start] = 0
    return tree.chain(nodes, mask)


def paths(tree: TokenTree) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(turn, context tokens, response tokens) of every response, in order: what the tree is the union of."""
    triples = []
    for end in response_ends(tree).tolist():
        nodes, start = response_path(tree, end)
        triples.append((int(tree.turn_ids_N[end]), tree.tokens_N[nodes[:start]], tree.tokens_N[nodes[start:]]))
    return triples


def expand(tree: TokenTree) -> list[TokenTree]:
    """The tree as chains, one for each of its leaves, in order: what a branching tree costs without branches.

    Every supervised token is supervised in the first chain that holds it, and context in the others, so that the
    objective is that of the tree.
    """
    if is_one_chain(tree):
        return [tree]
    chains, counted, parents = [], np.zeros(len(tree), bool), tree.parents_N.tolist()
    for leaf in _leaves(tree).tolist():
        nodes = np.array(path_from_root(parents, leaf))
        mask = np.where(counted[nodes], np.float32(0), tree.response_mask_N[nodes])
        counted[nodes] = True
        if mask.any():
            chains.append(tree.chain(nodes, mask))
    return chains


def one_a_response(tree: TokenTree) -> list[TokenTree]:
    """The tree as chains, one for each response in its context, in order: context_k + response_k, K passes for one."""
    return [response_chain(tree, end) for end in response_ends(tree).tolist()]


# How a tree of tokens becomes sequences, by data.trees; the objective is the same of all.
FORMS: dict[str, Callable[[TokenTree], list[TokenTree]]] = {
    "tree": lambda tree: [tree],
    "paths": expand,
    "responses": one_a_response,
}


def longest_piece(tree: TokenTree, form: str) -> int:
    """Tokens of the longest sequence that a tree becomes. form: of FORMS."""
    if form == "tree":
        return len(tree)
    depths_N = positions(tree.parents_N)
    return int((depths_N[response_ends(tree)] if form == "responses" else depths_N).max(initial=-1)) + 1


def chain_tokens(tree: TokenTree, depths_N: np.ndarray) -> int:
    """The tokens of all chains of `expand(tree)`, in time linear in the tree where no leaf is context.

    depths_N: `positions` of the tree.
    """
    leaves = _leaves(tree)
    if tree.response_mask_N[leaves].all():
        return int((depths_N[leaves] + 1).sum())
    return sum(map(len, expand(tree)))


def _leaves(tree: TokenTree) -> np.ndarray:
    """The tokens that no other follows, in order."""
    has_child = np.zeros(len(tree) + 1, bool)
    has_child[tree.parents_N] = True  # a root's -1 marks the spare last entry
    return np.flatnonzero(~has_child[:-1])


class TreeBuilder:
    """Grows a TokenTree along its paths, in time linear in the tokens given.

    It stands on a path from the root; `descend` goes on from a depth of it, over tokens that are there already where
    they match, and grows the rest.
    """

    def __init__(self):
        self.tokens: list[int] = []
        self._branches: list[tuple[int, int]] = []  # (node, its parent) where a node does not follow the one before
        self._runs: list[tuple[int, float, int, int, int]] = []  # (tokens, weight, turn, message, response) in order
        self._path: list[int] = []  # node at each depth of the current path

    def __len__(self) -> int:
        return len(self.tokens)

    def descend(
        self, depth: int, tokens: list[int], message: int, turn: int, response: int, weight: float | None = None
    ) -> int:
        """Walks `tokens` down from `depth` of the current path.

        Args:
            depth: tokens of the current path to start below.
            tokens: to be walked over where they are there, and grown where they are not.
            message, turn, response: their message_ids, turn_ids and response_ids where they are grown.
            weight: of a response, which is grown anew even where context with the same tokens stands; None for context.

        Returns:
            The depth reached.
        """
        path, nodes, count, i = self._path, self.tokens, len(tokens), 0
        if weight is None and depth < len(path):
            there = path[depth : depth + count]
            if there and there[-1] - there[0] == len(there) - 1:
                there = nodes[there[0] : there[-1] + 1]
            else:
                there = [nodes[node] for node in there]
            if there == tokens:
                return depth + count
            i = next((i for i, (a, b) in enumerate(zip(there, tokens)) if a != b), len(there))
        if i == count:
            return depth + count
        if depth + i < len(path):
            del path[depth + i :]
        first = len(nodes)
        parent = path[-1] if path else -1
        if parent != first - 1:
            self._branches.append((first, parent))
        nodes += tokens[i:] if i else tokens
        path.extend(range(first, len(nodes)))
        self._runs.append((count - i, weight or 0.0, turn, message, response))
        return depth + count

    @property
    def is_chain(self) -> bool:
        """Whether every token follows the one before it."""
        return not self._branches

    def build(self) -> TokenTree:
        """The tree grown so far."""
        parents = np.arange(-1, len(self.tokens) - 1, dtype=np.int32)
        for node, parent in self._branches:
            parents[node] = parent
        counts, weights, turns, messages, responses = zip(*self._runs) if self._runs else ((),) * 5
        if any(weight and message not in (-1, response) for _, weight, _, message, response in self._runs):
            raise AssertionError("a response is to be trained that holds words of another message")
        counts = np.array(counts, np.int64)
        return TokenTree(
            np.array(self.tokens, np.int32),
            parents,
            np.repeat(np.array(weights, np.float32), counts),
            np.repeat(np.array(turns, np.int32), counts),
            np.repeat(np.array(messages, np.int32), counts),
            np.repeat(np.array(responses, np.int32), counts),
        )
