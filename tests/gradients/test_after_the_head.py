"""What follows the layer of logits counts in every gradient, in every dtype; the way past it is taken where nothing does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from param_features.gradients import plan_engine
from param_features.params import adapter_for, held_still, select
from param_features.problem import KL, Problem, inspect_output, read_inputs
from tests.adapters.zoo import hf_gpt2, hf_llama, seeded
from tests.models import hooked_transformer

TOKENS = torch.randint(3, 20, (4, 6), generator=torch.Generator().manual_seed(4))
POSITIONS = torch.tensor([5, 2, 4, 1])
SIZES = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 24, "max_position_embeddings": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "eager"}


def family(name: str, **changes) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{name}Config")(**SIZES | changes)
        return seeded(getattr(transformers, f"{name}ForCausalLM"), config)

    return make


class Plain(nn.Module):
    """Positions that influence later ones; what `after` makes of the logits is the output."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.mix, self.lm_head = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 20)
        self.after = after

    def forward(self, tokens):
        return self.after(self.lm_head(torch.tanh(self.mix(self.embed(tokens))).cumsum(1)))


def plain(after: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: seeded(Plain, after)


def hooked_on_its_head() -> nn.Module:
    """A hook of the user's, which belongs to the head but is no part of its forward."""
    model = seeded(Plain, lambda logits: logits)
    model.lm_head.register_forward_hook(lambda module, args, output: 10 * torch.tanh(output / 10))
    return model


def capped_in_its_head() -> nn.Module:
    """The head's own forward is no product, though its class is that of one."""
    model = seeded(Plain, lambda logits: logits)
    forward = model.lm_head.forward
    model.lm_head.forward = lambda x: 10 * torch.tanh(forward(x) / 10)
    return model


def cut_off(logits: Tensor) -> Tensor:
    logits[..., :3] *= 0.9
    return logits


MODELS = {
    "Gemma2": (family("Gemma2", head_dim=8), "*.0.self_attn.k_proj.weight", False),
    "VaultGemma": (family("VaultGemma", head_dim=8), "*.0.self_attn.k_proj.weight", False),
    "Cohere": (family("Cohere"), "*.0.self_attn.k_proj.weight", False),
    "Granite": (family("Granite", logits_scaling=0.9), "*.0.self_attn.k_proj.weight", False),
    "GraniteMoe": (family("GraniteMoe", logits_scaling=1.02, **EXPERTS), "*.0.self_attn.k_proj.weight", False),
    "Llama": (hf_llama, "*.0.self_attn.k_proj.weight", True),
    "GPT2": (hf_gpt2, "*.0.attn.c_attn.weight", True),
    "HookedTransformer": (hooked_transformer, "blocks.0.attn.W_K", True),
    "HookedTransformer, capped": (lambda: hooked_transformer(output_logits_soft_cap=10.0), "blocks.0.attn.W_K", False),
    "nothing": (plain(lambda logits: logits), "mix.weight", True),
    "cast and shaped": (
        plain(lambda logits: logits.float().flatten(0, 1).unflatten(0, (-1, logits.shape[1]))[:, :]),
        "mix.weight",
        True,
    ),
    "cap": (plain(lambda logits: 30 * torch.tanh(logits / 30)), "mix.weight", False),
    "clamp": (plain(lambda logits: logits.clamp(-12, 12)), "mix.weight", False),
    "scale": (plain(lambda logits: logits * 0.97), "mix.weight", False),
    "bias": (plain(lambda logits: logits + 0.3 * torch.arange(20).to(logits) / 20), "mix.weight", False),
    "in place": (plain(cut_off), "mix.weight", False),
    "user's hook": (hooked_on_its_head, "mix.weight", False),
    "head's forward": (capped_in_its_head, "mix.weight", True),
}


def large_logits(model: nn.Module) -> nn.Module:
    """Scale the table of logits until the largest is 13, as in trained models."""
    head = adapter_for(model).head()
    weight = max((head or model.unembed).parameters(), key=lambda parameter: parameter.dim())
    caps = [module for module in model.modules() if hasattr(module, "after")]
    with torch.no_grad():
        for _ in range(1 if caps else 3):
            logits = adapter_for(model).run(TOKENS)
            weight.mul_(13 / logits.abs().max().clamp(min=1))
    return model


def gradients(model: nn.Module, param: str, *, is_plain: bool) -> tuple[Tensor, bool]:
    """Of KL to the uniform distribution at one position of each row: by the engine, or by plain autograd."""
    adapter = adapter_for(model)
    subset, data = select(adapter.views(), param), read_inputs(adapter, TOKENS, None)
    view = subset.views[0]
    if is_plain:
        rows = []
        for row, position in enumerate(POSITIONS):
            with held_still(model):
                leaf = view.stored.requires_grad_()
                output = adapter.run(TOKENS[[row]])[0, position]
                loss = -output.to(torch.promote_types(output.dtype, torch.float32)).log_softmax(-1).mean()
                rows.append(view.to_matrix(torch.autograd.grad(loss, leaf)[0].double()))
        return torch.stack(rows), False
    engine = plan_engine(Problem(adapter, subset, data, inspect_output(adapter, data), KL(), "uniform"))
    found = []
    engine.each_slot(
        data,
        POSITIONS.unsqueeze(1),
        lambda output, *_: output.softmax(-1) - 1 / output.shape[-1],
        lambda _, by_name: found.append(by_name[view.name].dense().matrix.double()),
    )
    return found[0], engine.routes.through_head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_as_near_to_the_exact_ones_as_plain_autograds(name, dtype):
    make, param, takes_head = MODELS[name]
    model = large_logits(make()).to(dtype)
    twin = make().double()
    twin.load_state_dict(model.state_dict())
    exact = gradients(twin, param, is_plain=True)[0]
    by_autograd = gradients(model, param, is_plain=True)[0]
    ours, through_head = gradients(model, param, is_plain=False)
    assert through_head == takes_head
    assert exact.norm() > 1e-4
    error, autograds = ((found - exact).norm() / exact.norm() for found in (ours, by_autograd))
    assert error < 1.5 * autograds + 1e-6
    assert autograds < {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.05}[dtype]
