"""Pairs of prompts: each clean one's last position against its own partner's, and what is refused."""

import pytest
import torch
from torch.nn.functional import kl_div, one_hot

import param_features as pf
from benchmarks import toys
from param_features.errors import InputError, SampleCountError, SettingError
from param_features.gradients import Harvester, HarvestSettings, SampleProbe, own_references
from param_features.measure import match_directions
from param_features.problem import KL, OutputInfo, Problem, Reference, as_pairs, read_pairs
from tests.models import Classifier
from tests.oracle import case_of
from tests.test_padding import encoding

W_K = "blocks.0.attn.W_K"
LOGITS = OutputInfo((2, 6, 20), torch.float64, is_logits=True, per_position=True)
QUICK = {"n_features": 2, "steps": 10, "progress": False}


def drawn(n_rows: int, n_pos: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(1, 20, (n_rows, n_pos), generator=torch.Generator().manual_seed(seed))


def rows_of(lengths, seed: int) -> list[list[int]]:
    return [row[:length] for row, length in zip(drawn(len(lengths), 9, seed).tolist(), lengths, strict=True)]


CLEAN, CORRUPTED = rows_of([5, 3, 8, 4, 6], 1), rows_of([4, 3, 2, 9, 6], 2)
FORMS = {
    "list of pairs": list(zip(CLEAN, CORRUPTED, strict=True)),
    "tensors of ids": [(torch.tensor(c), torch.tensor(k)) for c, k in zip(CLEAN, CORRUPTED, strict=True)],
    "typed": pf.Pairs(CLEAN, CORRUPTED),
    "padded right": pf.Pairs(encoding(CLEAN, "right", pad=0), encoding(CORRUPTED, "right", pad=0)),
    "padded left": pf.Pairs(encoding(CLEAN, "left", pad=0), encoding(CORRUPTED, "left", pad=0)),
}


def harvested(model, param, reference, rows=None, **settings):
    """As `decompose` harvests pairs."""
    case = case_of(model, param, tokens=drawn(4, 6))
    pairs = read_pairs(case.engine.adapter, as_pairs(reference), None, None)
    rows = torch.arange(len(pairs.clean)) if rows is None else rows
    harvester = Harvester(SampleProbe(case.engine, pairs.clean), KL(), Reference("pairs"), HarvestSettings(**settings))
    problem = Problem(case.engine.adapter, case.engine.subset, pairs.clean, LOGITS, KL(), "pairs", pairs)
    own = own_references(problem, case.engine, rows)
    generator = torch.Generator().manual_seed(0)
    store = harvester.store(pairs.clean.rows(rows), 1, generator, progress=False, title="", references=own)
    return store.rows(slice(None))[param].dense().matrix


def by_autograd(model, param, pairs) -> torch.Tensor:
    """One pair at a time, each prompt alone and without padding."""
    view = case_of(model, param, tokens=drawn(4, 6)).engine.subset[param]
    found = []
    for clean, corrupted in pairs:
        with torch.no_grad():
            reference = model(torch.tensor([corrupted]))[0, -1].softmax(-1)
        value = kl_div(model(torch.tensor([clean]))[0, -1].log_softmax(-1), reference, reduction="sum")
        found.append(view.to_matrix(torch.autograd.grad(value, view.stored)[0]))
    return torch.stack(found)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [2, None])
def test_each_gradient_is_that_of_its_own_pair(tiny_hooked, form, batch_size):
    rows = torch.tensor([3, 0, 4, 2])
    found = harvested(tiny_hooked, W_K, FORMS[form], rows, batch_size=batch_size)
    expected = by_autograd(tiny_hooked, W_K, [FORMS["list of pairs"][row] for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


def test_two_matrices_are_clean_and_corrupted(tiny_hooked):
    clean, corrupted = drawn(5, 6, 1), drawn(5, 8, 2)
    found = harvested(tiny_hooked, W_K, (clean, corrupted))
    expected = by_autograd(tiny_hooked, W_K, zip(clean.tolist(), corrupted.tolist(), strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


def test_decompose_measures_on_held_out_pairs_and_keeps_partners_outputs(tiny_hooked):
    clean, corrupted = drawn(40, 6, 1), drawn(40, 6, 2)
    features = pf.decompose(tiny_hooked, W_K, reference=(clean, corrupted), **QUICK)
    assert (features.metrics["n_samples"], features.metrics["n_held_out"]) == (30, 10)
    assert features.reference == "pairs"
    with torch.no_grad():
        outputs = tiny_hooked(corrupted)[:, -1].softmax(-1)
    distance = torch.cdist(features.references, outputs).min(1).values
    assert len(features.references) == 16
    assert distance.max() < 1e-6
    assert any(torch.equal(features.examples.tokens[0], row) for row in clean)
    assert features.errors_by_l0().n_samples == 5


def test_saved_and_loaded_features_know_their_references(tiny_hooked, tmp_path):
    features = pf.decompose(tiny_hooked, W_K, reference=(drawn(40, 6, 1), drawn(40, 6, 2)), **QUICK)
    features.save_pretrained(tmp_path)
    loaded = pf.load(tmp_path, model=tiny_hooked)
    assert loaded.reference == "pairs"
    assert torch.equal(loaded.activations(drawn(3, 5)), features.activations(drawn(3, 5)))


def test_modules_without_tokens_take_pairs_of_inputs():
    clean, corrupted = torch.randn(2, 30, 1, 6, 6, generator=torch.Generator().manual_seed(0)).unbind()
    features = pf.decompose(Classifier(), "classifier.weight", reference=pf.Pairs(clean, corrupted), **QUICK)
    assert (features.reference, features.metrics["n_held_out"]) == ("pairs", 7)


def test_a_notebook_of_texts_reads_as_ids_do():
    model, texts = (
        pf.demo.load_model(),
        [("A girl named Sue", "A boy named Tom"), ("One sunny day, Lily", "One rainy day, Ben")],
    )
    adapter = case_of(model, "blocks.0.attn.W_K", tokens=pf.demo.tokens(4)).engine.adapter
    pairs = read_pairs(adapter, as_pairs(texts), None, None)
    assert pairs.corrupted.token_rows == [adapter.to_ids(text) for _, text in texts]


PAIRED = [([1, 2], [3, 2]), ([4, 5], [6, 5])]
REFUSED = [
    ({"reference": []}, InputError, "holds no pairs"),
    ({"reference": ("a clean text", "a corrupted one")}, InputError, r"reference\[0\] is 'a clean text', which is no pair"),
    ({"reference": [*PAIRED, ([1], [2], [3])]}, InputError, r"reference\[2\] is .* no pair.*list of \(clean, corrupted\)"),
    ({"reference": [*PAIRED, (1, 2)]}, InputError, r"reference\[2\] is \(1, 2\)"),
    ({"reference": pf.Pairs([[1, 2], [3, 4]], [[1, 2]])}, InputError, "2 clean and 1 corrupted"),
    ({"reference": pf.Pairs([[1, 2]], [[99]])}, InputError, r"corrupted prompts of reference=: tokens\[0, 0\] is 99"),
    ({"reference": pf.Pairs([[]], [[1]])}, InputError, "clean prompts of reference=: .*empty"),
    ({"reference": pf.Pairs([[1, 2], [3, 4]], [[2, 2], [3, 4]])}, InputError, "1 of 2 pairs .* pair 1: nothing differs"),
    ({"reference": PAIRED, "tokens": torch.ones(4, 5).long()}, InputError, "both tokens= and pairs.*background="),
    ({"reference": PAIRED, "inputs": torch.ones(4, 5)}, InputError, "both inputs= and pairs"),
    ({"reference": PAIRED, "divergence": "sum"}, SettingError, "divergence='sum'.*corrupted prompts would change nothing"),
    ({"reference": PAIRED, "method": "hessian"}, SettingError, "method='hessian'.*method='l3d'"),
    ({"reference": PAIRED}, SampleCountError, "fewer than the 2 features"),
    ({"reference": {"clean": [1]}, "tokens": [[1, 2]]}, SettingError, "or pairs of prompts"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message[:40] for _, _, message in REFUSED])
def test_refused_by_name(tiny_hooked, call, error, message):
    with pytest.raises(error, match=message):
        pf.decompose(tiny_hooked, W_K, **{**QUICK, **call})


def test_partners_with_outputs_of_another_shape_are_refused():
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x):
            return self.layer(x.unsqueeze(-1)).squeeze(-1)

    with pytest.raises(InputError, match=r"shape \(2, 3\) for clean prompts and \(2, 4\) for corrupted"):
        pf.decompose(Wide(), "layer.weight", reference=pf.Pairs(torch.ones(9, 3), torch.zeros(9, 4)), **QUICK)


def contrasted_circuits(seed: int, *, is_shuffled: bool) -> torch.Tensor:
    """|cosine| of features with the three planted circuits of ten that alone tell clean inputs from corrupted ones.

    Both inputs of a pair hold one of the seven other circuits, the same one.
    """
    toy, generator = toys.planted_circuits(seed=1), torch.Generator().manual_seed(seed)
    markers = torch.nn.functional.normalize(toy.truth.factors["encode.weight"][1][:, :, 0], dim=1)
    own, other = (one_hot(torch.randint(*ends, (400,), generator=generator), 10) * 1.5 for ends in ((0, 3), (3, 10)))
    partners = torch.randperm(400, generator=generator) if is_shuffled else torch.arange(400)
    pairs = pf.Pairs((own + other) @ markers, other[partners] @ markers)
    call = {"n_features": 6, "l0": 1, "steps": 300, "divergence": "se", "seed": seed, "progress": False}
    features = pf.decompose(toy.model, list(toy.params), reference=pairs, **call)
    return match_directions(toy.truth.rows([0, 1, 2]), features.v_out, torch.Generator()).cosine


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.release)])
def test_the_circuits_that_alone_differ_are_found_and_shuffled_partners_fail(seed):
    found, shuffled = (contrasted_circuits(seed, is_shuffled=is_shuffled) for is_shuffled in (False, True))
    assert found.min() > 0.8, found
    assert shuffled.min() < 0.5, shuffled
