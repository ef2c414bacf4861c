"""What a choice among kernels depends on: the heads that attend, and the rows that they attend over."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heads:
    """The heads that attend.

    Attributes:
        count: query heads, H.
        groups: key-value heads, G.
        head_dim: numbers of each, K.
        softcap: whether scores are softly capped.
        window: whether some layer has a sliding window.
        traced_window: whether the window is known only while it is computed, as in a scan over layers of both kinds.
    """

    count: int
    groups: int
    head_dim: int
    softcap: bool = False
    window: bool = False
    traced_window: bool = False


@dataclass(frozen=True)
class Rows:
    """What is known of the rows of a dataset.

    Attributes:
        branch: whether a tree of them may branch.
        most_trees: how many trees a row holds at most; 0 where that is not known.
    """

    branch: bool = True
    most_trees: int = 0

    @property
    def layout(self) -> str:
        """One of `kernels.LAYOUTS`."""
        return "trees" if self.branch else "chains"


ANY_ROWS = Rows()
