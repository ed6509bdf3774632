import pytest
import torch

from param_features.errors import SettingError
from param_features.measure import top_examples

TOKENS = [[1, 2, 3], [1, 2, 4], [5, 6, 7]]


def strings(ids):
    return [f"t{token}" for token in ids]


def acts_of(values):
    """One feature beside a second that is large wherever the sample's gradient is."""
    acts = torch.zeros(3, 3, 2)
    for (row, position), (first, second) in values.items():
        acts[row, position] = torch.tensor([first, second])
    return acts


def test_share_prefers_the_feature_that_is_alone_and_activation_the_larger_number():
    acts = acts_of({(0, 2): (5.0, 50.0), (2, 1): (-4.0, 0.0)})
    by_share = top_examples(acts, 0, TOKENS, strings, n=1)[0]
    by_activation = top_examples(acts, 0, TOKENS, strings, n=1, by="activation")[0]
    assert (by_share.row, by_share.position, by_share.activation) == (2, 1, -4.0)
    assert (by_activation.row, by_activation.position, by_activation.activation) == (0, 2, 5.0)


def test_equal_texts_count_once():
    acts = acts_of({(0, 1): (5.0, 0.0), (1, 1): (5.0, 0.0), (2, 0): (1.0, 0.0)})
    found = top_examples(acts, 0, TOKENS, strings, n=3)
    assert [(example.row, example.position) for example in found] == [(0, 1), (2, 0)]


def test_an_example_shows_its_token_and_the_next():
    acts = acts_of({(0, 1): (5.0, 0.0), (2, 2): (4.0, 0.0)})
    first, last = top_examples(acts, 0, TOKENS, strings, n=2)
    assert str(first) == "+5.0000  t1«t2» → 't3'"
    assert last.next_token is None
    assert first.activations == (0.0, 5.0, 0.0)


def test_unknown_ranking_is_refused():
    with pytest.raises(SettingError, match="'share', 'activation'"):
        top_examples(acts_of({}), 0, TOKENS, strings, n=1, by="size")
