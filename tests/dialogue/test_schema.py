import pytest

from mtsft.dialogue.schema import Dialogue, Message, path_from_root

#          0
#        1   4
#       2 3
PARENTS = (-1, 0, 1, 1, 0)


@pytest.mark.parametrize(("node", "path"), [(0, [0]), (1, [0, 1]), (3, [0, 1, 3]), (4, [0, 4]), (-1, [])])
def test_a_path_leads_from_the_root_to_the_node(node, path):
    assert path_from_root(PARENTS, node) == path


def test_the_path_of_a_message_is_all_before_it_or_what_it_answers():
    messages = tuple(Message("user", text) for text in "abcde")
    assert Dialogue("d", messages).path(3) == [0, 1, 2, 3]
    assert Dialogue("d", messages, parents=PARENTS).path(3) == [0, 1, 3]
