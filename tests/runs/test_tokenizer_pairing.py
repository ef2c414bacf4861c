"""Whether tokens mean to a base what they meant when it was trained."""

from types import SimpleNamespace

import numpy as np
import pytest

from mtsft.runs.tokenizer_pairing import pairing, supervised_tokens


class Letters:
    """A tokenizer of one letter a token, from `first` on."""

    def __init__(self, first, vocab_size=10):
        self._first, self.vocab_size, self.files = ord(first), vocab_size, {"first": first.encode()}

    def decode(self, ids):
        assert max(ids) < self.vocab_size
        return "".join(chr(self._first + token) for token in ids)


def base_of(tokenizer):
    return SimpleNamespace(chat=SimpleNamespace(open=lambda: (None, tokenizer)))


def test_tokens_that_spell_another_text_are_counted_and_the_commonest_is_named():
    own, runs = Letters("a"), Letters("a")
    runs.files = {"other": b""}
    runs.decode = lambda ids: "".join("?" if token in (3, 4) else chr(ord("a") + token) for token in ids)
    found = pairing(base_of(own), runs, np.array([0, 1, 2, 3, 3, 4, 5, 12, 12, 12]))  # 12 is new to the base
    assert found.share == pytest.approx(0.3)
    assert found.example == "token 3 is '?' to the dialogues and 'd' to the model"
    assert (found.is_told, found.is_wrong) == (True, False)


@pytest.mark.parametrize(("wrong", "is_told", "is_wrong"), [(1, False, False), (2, True, False), (51, True, True)])
def test_few_are_not_told_and_more_than_half_are_wrong(wrong, is_told, is_wrong):
    runs = Letters("a")
    runs.files, runs.decode = {}, lambda ids: "?" if ids == [3] else chr(ord("a") + ids[0])
    found = pairing(base_of(Letters("a")), runs, np.array([3] * wrong + [1] * (100 - wrong)))
    assert (found.is_told, found.is_wrong) == (is_told, is_wrong)


def test_the_same_files_are_the_same_tokenizer():
    assert pairing(base_of(Letters("a")), Letters("a"), np.array([3])).share == 0
    assert pairing(base_of(Letters("a")), Letters("b"), np.array([3])).share == 1


def test_the_supervised_tokens_of_the_first_dialogues_are_looked_at(monkeypatch):
    trees = [
        SimpleNamespace(tokens_N=np.array([7, 8, 9], np.int32), response_mask_N=np.array(mask, np.float32))
        for mask in ([0, 0, 1], [0, 0.5, 0], [1, 1, 1])
    ]
    assert supervised_tokens(trees).tolist() == [9, 8, 7, 8, 9]
    monkeypatch.setattr("mtsft.runs.tokenizer_pairing._SAMPLED", 2)
    assert supervised_tokens(trees).tolist() == [9, 8]
    assert supervised_tokens([]).tolist() == []
