from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from param_features.measure.label_purity import purity


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 999))
def test_it_is_the_share_of_the_commonest_label(n_samples, n_features, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 3, (n_samples,), generator=generator)
    is_top = torch.rand(n_samples, n_features, generator=generator) < 0.6
    found = purity(is_top, labels)
    for feature in range(n_features):
        held = [label for label in labels[is_top[:, feature]].tolist() if label >= 0]
        if held:
            assert float(found[feature]) == torch.tensor(Counter(held).most_common(1)[0][1] / len(held)).item()
        else:
            assert found[feature].isnan()
