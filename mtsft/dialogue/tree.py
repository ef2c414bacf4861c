"""A dialogue as a tree of tokens: the union of its (context, response) paths, each shared prefix once.

tokens         p  q  r  s  t  u
parents       -1  0  1  2  3  2      the index of the token before it on its path
positions      0  1  2  3  4  3      depth in the tree
subtree_ends   6  6  6  5  5  6      exclusive: k sees into q exactly when k <= q < subtree_ends[k]
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
    supervised = np.flatnonzero(tree.response_mask_N > 0)
    for turn in np.unique(tree.turn_ids_N[supervised]):
        response = supervised[tree.turn_ids_N[supervised] == turn]
        context, node = [], tree.parents_N[response[0]]
        while node >= 0:
            context.append(node)
            node = tree.parents_N[node]
        found.append((int(turn), tree.tokens_N[context[::-1]], tree.tokens_N[response]))
    return found


def _runs(parents_N: np.ndarray) -> list[tuple[int, int]]:
    """The [start, end) stretches in which every token follows the one before it."""
    starts = np.flatnonzero(parents_N != np.arange(-1, len(parents_N) - 1))
    starts = [0, *starts.tolist()] if len(parents_N) and (not len(starts) or starts[0]) else starts.tolist()
    return list(zip(starts, [*starts[1:], len(parents_N)]))


class TreeBuilder:
    """Grows a TokenTree along its paths, in time linear in the tokens given.

    The walk stands on a path from the root; `descend` goes on from a depth of it, over tokens that are there
    already where they match, and grows the rest.
    """

    def __init__(self):
        self._columns = ([], [], [], [], [])  # tokens, parents, response_mask, turn_ids, message_ids
        self._path: list[int] = []  # node at each depth of the current path

    def __len__(self) -> int:
        return len(self._columns[0])

    def descend(self, depth: int, tokens, message_ids, turn: int, weight: float = 0.0) -> int:
        """Walks `tokens` down from `depth` of the current path; returns the depth reached.

        Tokens with a weight are a response: they are grown anew even where context with the same tokens stands.
        """
        known, parents, mask, turns, messages = self._columns
        path, i = self._path, 0
        while not weight and i < len(tokens) and depth + i < len(path) and known[path[depth + i]] == tokens[i]:
            i += 1
        end = depth + len(tokens)
        if i == len(tokens):
            return end
        del path[depth + i :]
        first, count = len(known), len(tokens) - i
        parents.append(path[-1] if path else -1)
        parents.extend(range(first, first + count - 1))
        path.extend(range(first, first + count))
        known.extend(tokens[i:])
        messages.extend(message_ids[i:])
        mask.extend([weight] * count)
        turns.extend([turn] * count)
        return end

    def build(self) -> TokenTree:
        """The tree grown so far."""
        dtypes = (np.int32, np.int32, np.float32, np.int32, np.int32)
        return TokenTree(*(np.array(column, dtype) for column, dtype in zip(self._columns, dtypes)))
