"""What samples are compared with: the references of a problem, collected once from its data, or each sample's own."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.gradients.engine import GradientEngine
from param_features.gradients.harvester import OwnReferences
from param_features.gradients.outputs import outputs_at
from param_features.gradients.sampling import draw_positions
from param_features.machine import typed
from param_features.problem import Divergence, ModelInputs, Problem, Question

_MAX_ROWS = 256


def question_of(problem: Problem, engine: GradientEngine, n: int, generator: torch.Generator) -> Question:
    """What samples are compared with during the fit, and what activations average over later.

    Cost: forward passes of at most 256 rows.

    Raises:
        InputError: The user's own references have another width than outputs.
    """
    kind, divergence = problem.kind, problem.divergence
    if problem.known is not None and isinstance(problem.reference, str):
        return Question(divergence, kind, problem.known)
    if problem.pairs is not None:
        rows = torch.randperm(len(problem.data), generator=generator)[:n]
        return Question(divergence, kind, partner_outputs(problem, engine, rows))
    if problem.given_references is not None:
        return Question(divergence, kind, problem.given_references)
    return Question(divergence, kind, collect_references(engine, divergence, problem.data, kind, n, generator))


def partner_outputs(problem: Problem, engine: GradientEngine, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_output"]:
    """Outputs at the last real positions of some corrupted prompts, as references. Cost: one forward pass of them."""
    assert problem.pairs is not None
    inputs = problem.pairs.corrupted.rows(rows)
    return problem.divergence.to_reference(outputs_at(engine, inputs, inputs.last_positions))


def own_references(problem: Problem, engine: GradientEngine, rows: Int[Tensor, " row"]) -> OwnReferences | None:
    """References that belong to some of the rows, a batch at a time; None where they are drawn."""
    return None if problem.pairs is None else lambda chosen: partner_outputs(problem, engine, rows[chosen])


@typed
@torch.no_grad()
def collect_references(
    engine: GradientEngine,
    divergence: Divergence,
    data: ModelInputs,
    kind: str,
    n: int,
    generator: torch.Generator,
) -> Float[Tensor, "n_references d_output"]:
    """Outputs of `n` samples drawn from the data, as references; their mean, or uniform ones, by the kind.

    `"label"` takes outputs from the data as `"sample"` does: labels drawn from the model's own softmax average to it, so
    activations against them would average to zero.
    Cost: forward passes of at most 256 rows.
    """
    data = data.with_samples()
    rows = torch.randperm(len(data), generator=generator)[: _MAX_ROWS if kind == "mean" else n]
    outputs = divergence.to_reference(_outputs(engine, data, rows, generator))
    if kind == "uniform":
        return torch.full_like(outputs[:1], 1 / outputs.shape[1])
    if kind == "mean":
        return outputs.mean(0, keepdim=True)
    return outputs


def _outputs(engine: GradientEngine, data: ModelInputs, rows: Tensor, generator: torch.Generator) -> Tensor:
    """The output of one sample of each row, a few rows at a time."""
    outputs = []
    for part in rows.split(16):
        batch = data.rows(part)
        positions = draw_positions(batch, 1, generator)[:, 0] if engine.per_position else batch.last_positions
        outputs.append(outputs_at(engine, batch, positions))
    return torch.cat(outputs)
