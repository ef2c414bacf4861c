"""Chains that share their beginnings, and what was written as such a chain."""

from hypothesis import given
from hypothesis import strategies as st

from mtsft.template.written import Link, Written

PIECES = st.lists(st.sampled_from(["a", "bc", "", "\U000f0000", "d\U000f0001e"]), max_size=40)


def written(start, pieces):
    for piece in pieces:
        start = start.then(piece)
    return start


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_last_link_of_which_something_holds_is_found_in_few_looks(length, wanted):
    link = Link(None)
    for _ in range(length):
        link = Link(link)
    looks = []
    found = link.last_where(lambda one: looks.append(one) or one.depth <= wanted)
    assert found.depth == min(length, wanted)
    assert len(looks) <= 2 + 6 * length.bit_length()
    assert all(one.depth for one in looks)  # of the first it holds


@given(PIECES, PIECES, PIECES)
def test_two_texts_part_where_their_pieces_do(both, one, other):
    start = Written()
    a, b = written(start, [*both, *one]), written(start, [*both, *other])
    pieces = [[p for p in (*both, *more) if p] for more in (one, other)]
    alike = next((i for i, (p, q) in enumerate(zip(*pieces)) if p != q), min(map(len, pieces)))
    shared = len("".join(pieces[0][:alike]))
    assert a.shared_with(b) == b.shared_with(a) == shared
    text = "".join([*both, *one])
    assert str(a) == text
    assert all(a.since(i) == text[i:] for i in range(len(text) + 1))
    ends = [i + 1 for i, character in enumerate(text[:shared]) if character > "\U000effff"]
    assert a.part_before(b) == max(ends, default=0)


def test_no_more_is_kept_than_is_met_again():
    start = Written()
    first = start.then("a")
    assert start.then("a") is first
    for i in range(100):
        start.then(str(i))
    assert len(start._next) <= 8
    assert str(start.then("a")) == "a"
    assert start.then("") is start
