"""What examples do along features: against gradients taken one row at a time, and against a step of SGD."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import param_features as pf
from param_features.errors import NotBoundError, OutputError, SettingError

NAME = "blocks.0.attn.W_K"


def gradients(model, tokens):
    """The oracle: each row's own gradient of its mean next-token loss."""
    weight, found = dict(model.named_parameters())[NAME], []
    for row in tokens:
        loss = cross_entropy(model(row[None])[0, :-1], row[1:])
        found.append(torch.autograd.grad(loss, weight)[0])
    return torch.stack(found)


def test_pushes_are_minus_the_rows_own_slopes(tiny_features, tiny_hooked, tiny_tokens):
    found = pf.development.pushes(tiny_features, tiny_tokens[:5])
    rows = torch.stack([tiny_features.direction(k)[NAME].flatten() for k in range(6)]).double()
    expected = -gradients(tiny_hooked, tiny_tokens[:5]).flatten(1).double() @ rows.T
    assert torch.allclose(found.values, expected, atol=1e-9)
    assert found.strings[0] == tuple(map(str, tiny_tokens[0].tolist()))


def test_a_step_of_gradient_descent_goes_where_its_rows_push(tiny_features, tiny_hooked, tiny_tokens):
    found = pf.development.pushes(tiny_features, tiny_tokens)  # 40 rows
    step = -0.1 * gradients(tiny_hooked, tiny_tokens).mean(0)
    assert torch.allclose(tiny_features.coordinates({NAME: step}).overlaps, 0.1 * found.mean, atol=1e-9)


def test_batches_do_not_show(tiny_features, tiny_tokens):
    many = tiny_tokens.repeat(4, 1)  # 160 rows: three batches
    found = pf.development.pushes(tiny_features, many)
    assert torch.allclose(found.values[:40], found.values[120:], atol=1e-12)
    assert found.losses.shape == (160,)


def test_rows_and_features_are_ranked_by_size(tiny_features, tiny_tokens):
    found = pf.development.pushes(tiny_features, tiny_tokens[:7])
    (feature, mean), *_ = found.top_features(2)
    assert abs(mean) == float(found.mean.abs().max())
    rows = [row for row, _ in found.top_rows(feature, 7)]
    assert rows == found.values[:, feature].abs().argsort(descending=True).tolist()
    assert f"{feature}: " in repr(found)
    with pytest.raises(SettingError, match="numbered 0 to 5"):
        found.top_rows(6)


def test_another_loss_and_the_features_own_examples(tiny_features):
    twice = pf.development.pushes(tiny_features, loss=lambda output: 2 * output[:, 0, 0])
    once = pf.development.pushes(tiny_features, loss=lambda output: output[:, 0, 0])
    assert torch.allclose(twice.values, 2 * once.values)
    assert len(once.values) == len(tiny_features.examples)


def test_what_cannot_be_pushed_is_refused(tiny_features, tiny_tokens, tmp_path):
    with pytest.raises(OutputError, match="one number for each"):
        pf.development.pushes(tiny_features, tiny_tokens, loss=lambda output: output.sum())
    with pytest.raises(SettingError, match="unknown"):
        pf.development.pushes(tiny_features, tiny_tokens, loss="los")
    tiny_features.save_pretrained(tmp_path / "saved")
    with pytest.raises(NotBoundError):
        pf.development.pushes(pf.load(tmp_path / "saved"), tiny_tokens)
