"""A dialogue as a tree of tokens: the union of its (context, response) paths, each shared prefix once.

tokens         p  q  r  s  t  u
parents       -1  0  1  2  3  2      the index of the token before it on its path
positions      0  1  2  3  4  3      depth in the tree
subtree_ends   6  6  6  5  5  6      exclusive: query q sees key k exactly when k <= q < subtree_ends[k]
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Tokens in depth-first order, N of them.

    tokens_N: int32 ids. parents_N: int32, the index of the token before it on its path, -1 at the root.
    response_mask_N: float32, 0 for context, the weight for a response token. turn_ids_N: int32, the index among the
    dialogue's assistant messages of the response that a token is, or first leads to. message_ids_N: int32, the
    index of the message whose words a token is part of, -1 for text of the template.
    """

    tokens_N: np.ndarray
    parents_N: np.ndarray
    response_mask_N: np.ndarray
    turn_ids_N: np.ndarray
    message_ids_N: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_N)

    def head(self, count: int) -> "TokenTree":
        """The first `count` tokens: again a tree, since a parent always stands before its child."""
        return TokenTree(*(getattr(self, name)[:count] for name in self.__slots__))


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
    # so that the first one has the last word.
    for start, _ in reversed(_runs(parents_N)):
        ends_N[parents_N[start] + 1 : start] = start
    return ends_N


def paths(tree: TokenTree) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(turn, context tokens, response tokens) of every response, in order: what the tree is the union of."""
    found = []
    for end in response_ends(tree).tolist():
        nodes, turn = [end], tree.turn_ids_N[end]
        while tree.parents_N[nodes[-1]] >= 0:
            nodes.append(tree.parents_N[nodes[-1]])
        nodes = nodes[::-1]
        start = len(nodes)
        while start and tree.response_mask_N[nodes[start - 1]] > 0 and tree.turn_ids_N[nodes[start - 1]] == turn:
            start -= 1
        found.append((int(turn), tree.tokens_N[nodes[:start]], tree.tokens_N[nodes[start:]]))
    return found


def _runs(parents_N: np.ndarray) -> list[tuple[int, int]]:
    """The [start, end) stretches in which every token follows the one before it."""
    starts = np.flatnonzero(parents_N != np.arange(-1, len(parents_N) - 1))
    starts = [0, *starts.tolist()] if len(parents_N) and (not len(starts) or starts[0]) else starts.tolist()
    return list(zip(starts, [*starts[1:], len(parents_N)]))


def is_one_chain(tree: TokenTree) -> bool:
    """Whether every token follows the one before it."""
    return bool((tree.parents_N[1:] == np.arange(len(tree) - 1)).all())


def response_ends(tree: TokenTree) -> np.ndarray:
    """The last token of every response that is supervised, in order."""
    supervised = tree.response_mask_N != 0
    goes_on = supervised[1:] & (tree.parents_N[1:] == np.arange(len(tree) - 1))
    goes_on &= tree.turn_ids_N[1:] == tree.turn_ids_N[:-1]
    return np.flatnonzero(supervised & ~np.append(goes_on, False))


def expand(tree: TokenTree) -> list[TokenTree]:
    """The tree as chains, one for each of its leaves, in order: what a branching tree costs without branches.

    Every supervised token is supervised in the first chain that holds it, and context in the others, so that the
    objective is that of the tree.
    """
    if is_one_chain(tree):
        return [tree]
    has_child = np.zeros(len(tree) + 1, bool)
    has_child[tree.parents_N] = True  # a root's -1 marks the spare last place
    chains, counted = [], np.zeros(len(tree), bool)
    for leaf in np.flatnonzero(~has_child[:-1]):
        nodes, node = [], leaf
        while node >= 0:
            nodes.append(node)
            node = tree.parents_N[node]
        nodes = np.array(nodes[::-1])
        mask = np.where(counted[nodes], np.float32(0), tree.response_mask_N[nodes])
        counted[nodes] = True
        parents = np.arange(-1, len(nodes) - 1, dtype=np.int32)
        if mask.any():
            chains.append(
                TokenTree(tree.tokens_N[nodes], parents, mask, tree.turn_ids_N[nodes], tree.message_ids_N[nodes])
            )
    return chains


class TreeBuilder:
    """Grows a TokenTree along its paths, in time linear in the tokens given.

    The walk stands on a path from the root; `descend` goes on from a depth of it, over tokens that are there
    already where they match, and grows the rest.
    """

    def __init__(self):
        self.tokens: list[int] = []
        self._branches: list[tuple[int, int]] = []  # (node, its parent) where a node does not follow the one before
        self._runs: list[tuple[int, float, int, int]] = []  # (tokens, weight, turn, message) in order
        self._path: list[int] = []  # node at each depth of the current path

    def __len__(self) -> int:
        return len(self.tokens)

    def descend(self, depth: int, tokens: list[int], message: int, turn: int, weight: float | None = None) -> int:
        """Walks `tokens` down from `depth` of the current path; returns the depth reached.

        message: whose words they are. weight: of a response, which is grown anew even where context with the same
        tokens stands; None for context.
        """
        path, known, count, i = self._path, self.tokens, len(tokens), 0
        if weight is None and depth < len(path):
            there = path[depth : depth + count]
            if there and there[-1] - there[0] == len(there) - 1:
                there = known[there[0] : there[-1] + 1]
            else:
                there = [known[node] for node in there]
            if there == tokens:
                return depth + count
            i = next((i for i, (a, b) in enumerate(zip(there, tokens)) if a != b), len(there))
        if i == count:
            return depth + count
        if depth + i < len(path):
            del path[depth + i :]
        first = len(known)
        parent = path[-1] if path else -1
        if parent != first - 1:
            self._branches.append((first, parent))
        known += tokens[i:] if i else tokens
        path.extend(range(first, len(known)))
        self._runs.append((count - i, weight or 0.0, turn, message))
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
        counts, weights, turns, messages = zip(*self._runs) if self._runs else ((), (), (), ())
        return TokenTree(
            np.array(self.tokens, np.int32),
            parents,
            np.repeat(np.array(weights, np.float32), counts),
            np.repeat(np.array(turns, np.int32), counts),
            np.repeat(np.array(messages, np.int32), counts),
        )
