"""Metrics of prompts: which tokens, at which position, and what is refused."""

import pytest
import torch

import param_features as pf
from param_features.circuits.metric import NextTokenLoss, checked_values, read_metric
from param_features.errors import InputError, NonFiniteError, OutputError, SettingError
from param_features.params import adapter_for
from param_features.problem import ModelInputs


@pytest.fixture(scope="module")
def adapter(tiny_hooked):
    return adapter_for(tiny_hooked)


@pytest.fixture
def padded():
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    return ModelInputs((tokens,), {}, mask=torch.tensor([[True] * 4, [True, True, False, False]]))


@pytest.fixture
def output():
    return torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_logit_difference_at_the_last_real_position(adapter, padded, output):
    found = pf.circuits.LogitDifference(3, [1, 2]).on(adapter, padded)(output)
    expected = torch.stack([output[0, 3, 3] - output[0, 3, 1], output[1, 1, 3] - output[1, 1, 2]])
    torch.testing.assert_close(found, expected)


def test_log_probability(adapter, padded, output):
    found = pf.circuits.LogProbability(torch.tensor([3, 4])).on(adapter, padded)(output)
    logs = output.log_softmax(-1)
    torch.testing.assert_close(found, torch.stack([logs[0, 3, 3], logs[1, 1, 4]]))


def test_next_token_loss_leaves_padding_out(adapter, padded, output):
    found = NextTokenLoss().on(adapter, padded)(output)
    logs = output.log_softmax(-1)
    expected = torch.stack([-(logs[0, 0, 2] + logs[0, 1, 3] + logs[0, 2, 4]) / 3, -logs[1, 0, 6]])
    torch.testing.assert_close(found, expected)
    assert read_metric("loss") == NextTokenLoss()


def test_words_are_tokens_of_the_demo_model():
    model = pf.demo.load_model()
    adapter, inputs = adapter_for(model), ModelInputs((torch.tensor([[1, 2]]),), {})
    output = torch.randn(1, 2, adapter.d_vocab, generator=torch.Generator().manual_seed(0))
    number = adapter.to_ids(" she")[-1]
    found = pf.circuits.LogitDifference(" she", " he").on(adapter, inputs)(output)
    assert float(found) == pytest.approx(float(output[0, 1, number] - output[0, 1, adapter.to_ids(" he")[-1]]))
    assert pf.circuits.LogitDifference(" she", [" he", " he", " it"]).name == "logit difference ' she' − ' he' / ' it'"
    assert pf.circuits.LogProbability(torch.tensor([4, 5, 6, 7])).name == "log-probability of 4 / 5 / 6 / …"
    with pytest.raises(InputError, match="is no single token here"):
        pf.circuits.LogProbability(" she he").on(adapter, inputs)


def test_refusals(adapter, padded, output):
    with pytest.raises(InputError, match="Token 20 is not in the vocabulary of 20"):
        pf.circuits.LogProbability(20).on(adapter, padded)
    with pytest.raises(InputError, match="3 tokens are given for 2 prompts"):
        pf.circuits.LogProbability([1, 2, 3]).on(adapter, padded)
    with pytest.raises(InputError, match="logits \\[prompt, position, vocabulary\\]"):
        pf.circuits.LogProbability(1).on(adapter, padded)(output[:, 0])
    with pytest.raises(InputError, match="two tokens or more"):
        NextTokenLoss().on(adapter, ModelInputs((torch.randn(3, 2),), {}))
    with pytest.raises(SettingError, match="pf.circuits.LogProbability"):
        read_metric("accuracy")
    with pytest.raises(OutputError, match="one number for each"):
        checked_values(output, 2, "own")
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        checked_values(torch.tensor([1.0, float("inf")]), 2, "own")
