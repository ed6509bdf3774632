import pytest
import torch

import param_features as pf
from param_features.errors import InputError, NotBoundError


def divergence_along(features, tokens, feature, step, references):
    """D averaged over references, with the weights moved along one direction: the slow obvious way."""
    subset = features.engine.subset
    move = {name: step * tensor for name, tensor in features.direction(feature).items()}
    with subset.edited(move), torch.no_grad():
        output = features.engine.adapter.model(tokens)
    flat = output.flatten(0, -2)
    values = [features.divergence.value(flat, row.expand_as(flat)) for row in references]
    return torch.stack(values).mean(0).reshape(output.shape[:-1])


def test_jvp_equals_vjp(tiny_features, tiny_tokens):
    by_vjp = tiny_features.activations(tiny_tokens[:5], route="vjp")
    by_jvp = tiny_features.activations(tiny_tokens[:5], route="jvp")
    assert by_vjp.shape == (5, 10, 6)
    torch.testing.assert_close(by_vjp, by_jvp, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("feature", [0, 5])
def test_activation_is_the_derivative_of_the_divergence(tiny_features, tiny_tokens, feature):
    tokens, step = tiny_tokens[:3], 1e-5
    up = divergence_along(tiny_features, tokens, feature, step, tiny_features.references)
    down = divergence_along(tiny_features, tokens, feature, -step, tiny_features.references)
    found = tiny_features.activations(tokens)[..., feature]
    torch.testing.assert_close(found, (up - down) / (2 * step), rtol=1e-6, atol=1e-8)


def test_mean_over_references_is_the_mean_of_single_ones(tiny_features, tiny_tokens):
    adapter = tiny_features.engine.adapter
    outputs = adapter.model(tiny_tokens[:4])[:, -1].detach()
    together = tiny_features.activations(tiny_tokens[:2], reference=outputs)
    alone = [tiny_features.activations(tiny_tokens[:2], reference=row) for row in outputs]
    torch.testing.assert_close(together, torch.stack(alone).mean(0))
    assert not torch.allclose(alone[0], alone[1])


def test_n_references_takes_the_first(tiny_features, tiny_tokens):
    one = tiny_features.activations(tiny_tokens[:2], n_references=1)
    assert not torch.allclose(one, tiny_features.activations(tiny_tokens[:2]))
    with pytest.raises(InputError, match=r"16 are stored.*1 to 16"):
        tiny_features.activations(tiny_tokens[:2], n_references=17)


def test_reference_of_the_wrong_width_is_refused(tiny_features, tiny_tokens):
    with pytest.raises(InputError, match=r"\[20\] or \[n_references, 20\]"):
        tiny_features.activations(tiny_tokens[:2], reference=torch.zeros(3))


def test_padding_has_no_activation(tiny_features):
    found = tiny_features.activations([[1, 2, 3, 4], [5, 6]])
    assert torch.equal(found[1, 2:], torch.zeros(2, 6, dtype=found.dtype))
    alone = tiny_features.activations(torch.tensor([[5, 6]]))
    torch.testing.assert_close(found[1, :2], alone[0])


def test_a_custom_divergence_averages_over_references(classifier, images):
    def cubic(output, reference):
        return (output - reference).pow(3).sum(-1)

    fit = pf.FitSettings(steps=10, batch_size=16, selection="l1")
    features = pf.decompose(
        classifier, "classifier.weight", inputs=images, n_features=4, l0=2, divergence=cubic, fit=fit, progress=False
    )
    alone = [features.activations(inputs=images[:3], reference=row) for row in features.references]
    torch.testing.assert_close(features.activations(inputs=images[:3]), torch.stack(alone).mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        features.activations(inputs=images[:3]), features.activations(inputs=images[:3], route="jvp"), rtol=1e-4, atol=1e-4
    )


def test_models_without_positions_have_one_activation_per_input(classifier, images):
    features = pf.decompose(
        classifier, ["conv.weight", "conv.bias"], inputs=images, n_features=4, l0=2, steps=10, progress=False
    )
    by_vjp = features.activations(inputs=images[:5])
    assert by_vjp.shape == (5, 4)
    torch.testing.assert_close(by_vjp, features.activations(inputs=images[:5], route="jvp"), rtol=1e-4, atol=1e-5)
    assert features.top_examples(0, 2)[0].tokens == ()


def test_features_without_a_model_say_so(tiny_features, tiny_tokens, tmp_path):
    tiny_features.save_pretrained(tmp_path)
    with pytest.raises(NotBoundError, match=r"pf\.load\(dir, model=…\)"):
        pf.load(tmp_path).activations(tiny_tokens)


def test_top_logits_are_the_change_of_centred_logits(tiny_features, tiny_tokens):
    best = tiny_features.top_examples(0, 4)
    step, subset = 1e-5, tiny_features.engine.subset
    rows, positions = [example.row for example in best], [example.position for example in best]
    tokens = tiny_features.examples.tokens[rows]
    moved = {name: step * tensor for name, tensor in tiny_features.direction(0).items()}
    before = tiny_features.engine.adapter.model(tokens)[range(4), positions]
    with subset.edited(moved):
        after = tiny_features.engine.adapter.model(tokens)[range(4), positions]
    change = ((after - before) / step).mean(0)
    change = change - change.mean()
    found = tiny_features.top_logits(0, 3, n_examples=4)
    assert [int(token) for token, _ in found.up] == change.topk(3).indices.tolist()
    assert [int(token) for token, _ in found.down] == (-change).topk(3).indices.tolist()
    assert found.up[0][1] == pytest.approx(float(change.max().detach()), rel=1e-3)


class Fused(torch.nn.Module):
    """Attention by the fused kernel, which has no forward-mode derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 24), torch.nn.Linear(8, 9)

    def forward(self, tokens):
        q, k, v = self.qkv(self.embed(tokens)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


def backends() -> tuple[bool, ...]:
    flags = torch.backends.cuda
    return flags.flash_sdp_enabled(), flags.mem_efficient_sdp_enabled(), flags.math_sdp_enabled(), flags.cudnn_sdp_enabled()


def test_forward_mode_runs_on_fused_attention_and_restores_the_kernels():
    model, tokens = Fused(), torch.randint(9, (40, 6))
    primals = {"qkv.weight": model.qkv.weight.detach()}
    with pytest.raises(NotImplementedError):
        torch.func.jvp(lambda w: torch.func.functional_call(model, w, (tokens,)), (primals,), (primals,))
    features = pf.decompose(model, "qkv.weight", tokens, n_features=4, l0=1, steps=5, progress=False)
    before = backends()
    by_jvp = features.activations(tokens[:3], route="jvp")
    assert backends() == before
    assert any(before[:2])
    torch.testing.assert_close(by_jvp, features.activations(tokens[:3], route="vjp"), rtol=1e-4, atol=1e-5)
