"""In-context learning: heads that find what followed a token before, and the loss of late tokens against early ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from param_features.circuits import next_token_losses
from param_features.development.patterns import attention_patterns
from param_features.errors import AdapterError, InputError, NonFiniteError, SettingError
from param_features.machine import own_modes, public
from param_features.params import Adapter, adapter_for, held_still
from param_features.problem import ModelInputs, read_inputs

_BATCH = 64
_EARLY, _LATE, _ROW_LENGTH = 50, 500, 512
_LONGEST = 50


@dataclass(frozen=True, eq=False)
class PrefixMatching:
    """How much each head attends from a token to what followed its earlier occurrences.

    Attributes:
        scores: Mean attention, 0 to 1; NaN where a layer has fewer heads.
        layers: Names of the attention layers.
        even: The score of a head that attends evenly to its own and all earlier positions: what to compare with.
        n_places: Positions that the means are over.
    """

    scores: Float[Tensor, "layer head"]
    layers: tuple[str, ...]
    even: float
    n_places: int

    @public
    def top(self, n: int = 5) -> list[tuple[str, int, float]]:
        """The heads with the highest scores: layer, number, score."""
        n_heads = self.scores.shape[1]
        order = self.scores.flatten().nan_to_num(-1.0).argsort(descending=True, stable=True)[:n].tolist()
        return [(self.layers[i // n_heads], i % n_heads, float(self.scores[i // n_heads, i % n_heads])) for i in order]

    def __repr__(self) -> str:
        """The heads that match prefixes most."""
        heads = ", ".join(f"{layer} head {head}: {score:.3f}" for layer, head, score in self.top(3))
        return f"PrefixMatching over {self.n_places} places: {heads}; attending evenly: {self.even:.3f}"


@public
@own_modes()
def prefix_matching(model: Any, tokens: Any = None, *, n_rows: int = 32, seed: int = 0) -> PrefixMatching:
    """The prefix-matching score of every head: high in induction heads.

    At a token that has stood in its row before, the attention that goes to the positions right after its earlier
    occurrences, all together; the mean over all such tokens. A position does not count as following itself.

    Cost: a forward pass with plain attention, 64 rows at a time.

    Args:
        model: Of TransformerLens, or a Hugging Face model whose attention layers return their weights.
        tokens: Rows [row, pos], strings, or an encoding. By default random ones: distinct tokens where the vocabulary has
            as many, and the same again; behind the tokenizer's first token where it has one.
        n_rows: Of the random tokens.
        seed: Of the random tokens.

    Raises:
        AdapterError: The model takes no tokens, or shows no attention patterns.
        InputError: No token comes again, or the model cannot take the tokens.
        SettingError: `n_rows` is not positive.

    Source: Olsson et al. 2022 (2209.11895), "In-context Learning and Induction Heads", "Prefix matching".
    """
    if n_rows < 1:
        raise SettingError(f"n_rows={n_rows} must be positive.")
    adapter = adapter_for(model)
    inputs = read_inputs(adapter, repeated_tokens(adapter, n_rows, seed) if tokens is None else tokens, None)
    sums: dict[str, Tensor] = {}
    n_places, even = 0, 0.0
    for start in range(0, len(inputs), _BATCH):
        batch = inputs.rows(slice(start, start + _BATCH))
        targets, is_place = followers(batch)
        n_places += int(is_place.sum())
        even += float((targets.sum(2) / _n_before(batch))[is_place].sum())
        for name, pattern in attention_patterns(adapter, batch).items():
            attended = (pattern.double() * targets.unsqueeze(1).to(pattern.device)).sum((0, 2, 3)).cpu()
            sums[name] = sums.get(name, 0) + attended
        if not n_places and start + _BATCH >= len(inputs):
            raise InputError(
                f"In {len(inputs)} rows no token comes again with another between, so that nothing can be matched. Give "
                "rows with repeated tokens, or leave tokens= out for random ones."
            )
    scores = pad_sequence([total / n_places for total in sums.values()], batch_first=True, padding_value=float("nan"))
    return PrefixMatching(scores, tuple(sums), even / n_places, n_places)


def followers(inputs: ModelInputs) -> tuple[Bool[Tensor, "row query key"], Bool[Tensor, "row query"]]:
    """Which positions follow an earlier occurrence of each position's token, and which positions have such a one."""
    tokens, is_real = _tokens(inputs), _is_real(inputs)
    same = (tokens[:, :, None] == tokens[:, None, :]) & is_real[:, :, None] & is_real[:, None, :]
    follows = torch.zeros_like(same)
    follows[:, :, 1:] = same[:, :, :-1]
    follows = follows.tril(-1)
    return follows, follows.any(2)


def repeated_tokens(adapter: Adapter, n_rows: int, seed: int) -> Int[Tensor, "row pos"]:
    """Random tokens and the same again, up to 50 of them; behind the tokenizer's first token where it has one.

    Raises:
        AdapterError: The model takes no tokens, or too few of them at a time.
    """
    if adapter.d_vocab is None:
        raise AdapterError(f"{type(adapter.model).__name__} is not known to take tokens. Give rows as tokens=.")
    first = getattr(adapter.tokenizer, "bos_token_id", None)
    left_out = {*(getattr(adapter.tokenizer, "all_special_ids", None) or ()), first}
    choices = torch.tensor([token for token in range(adapter.d_vocab) if token not in left_out])
    room = _LONGEST if adapter.n_ctx is None else (adapter.n_ctx - (first is not None)) // 2
    if min(room, len(choices)) < 2:
        raise AdapterError(f"A context of {adapter.n_ctx} and {len(choices)} tokens leave nothing to repeat. Give tokens=.")
    length = min(_LONGEST, room, len(choices))
    order = (
        torch.rand(n_rows, len(choices), dtype=torch.float32, generator=torch.Generator().manual_seed(seed))
        .topk(length, 1)
        .indices
    )
    rows = choices[order].repeat(1, 2)
    return rows if first is None else torch.cat([torch.full((n_rows, 1), first), rows], 1)


@public
@own_modes()
def token_losses(model: Any, tokens: Any) -> Float[Tensor, "row pos"]:
    """Cross-entropy of every token but the first, given those before it, in nats; NaN where padding is involved.

    Column i belongs to the token at position i + 1.

    Cost: a forward pass, 64 rows at a time.

    Args:
        model: Any that the adapters read and that predicts the next token.
        tokens: Rows [row, pos] of two tokens or more, strings, or an encoding.

    Raises:
        InputError: Rows are too short, or the model cannot take them.
        NonFiniteError: A loss is NaN or infinite.
    """
    adapter = adapter_for(model)
    inputs = read_inputs(adapter, tokens, None)
    if inputs.n_pos < 2:
        raise InputError(f"Rows of {inputs.n_pos} token have nothing to predict. Give rows of two or more.")
    with held_still(adapter.module), torch.no_grad():
        parts = [_losses(adapter, inputs.rows(slice(start, start + _BATCH))) for start in range(0, len(inputs), _BATCH)]
    return torch.cat(parts)


@public
@own_modes()
def in_context_score(
    model: Any, tokens: Any, *, late: int | Sequence[int] | None = None, early: int | Sequence[int] | None = None
) -> float:
    """Mean loss of late tokens less that of early ones, in nats: below 0 where the model uses what came before.

    Cost: as `pf.development.token_losses`.

    Args:
        model: Any that the adapters read and that predicts the next token.
        tokens: Rows [row, pos], strings, or an encoding, long enough for both positions.
        late: Position of the late token, from 1; or several. By default what token 500 is to a row of 512.
        early: Of the early one; by default what token 50 is to it.

    Raises:
        SettingError: A position is outside the rows, or late ones do not lie behind early ones.
        InputError: No row is long enough, or the model cannot take the tokens.
        NonFiniteError: A loss is NaN or infinite.

    Source: Olsson et al. 2022 (2209.11895), "In-context learning score": the loss of the 500th token less that of the 50th.
    """
    return score_of_losses(token_losses(model, tokens), late=late, early=early)


def score_of_losses(
    losses: Float[Tensor, "row pos"], *, late: int | Sequence[int] | None = None, early: int | Sequence[int] | None = None
) -> float:
    """The mean loss of late tokens less that of early ones, out of what `token_losses` returned.

    Raises:
        SettingError: A position is outside the rows, or late ones do not lie behind early ones.
        InputError: No row is long enough.
    """
    n_pos = losses.shape[1] + 1
    late_at = _positions(late, n_pos * _LATE // _ROW_LENGTH, n_pos)
    early_at = _positions(early, n_pos * _EARLY // _ROW_LENGTH, n_pos)
    if min(late_at) <= max(early_at):
        raise SettingError(
            f"late={late_at} and early={early_at}, in rows of {n_pos} tokens. Late positions must lie behind early ones."
        )
    score = _mean_at(losses, late_at) - _mean_at(losses, early_at)
    if score != score:
        raise InputError(f"No row has real tokens at {late_at} and {early_at}. Give longer rows, or other positions.")
    return score


def _positions(positions: int | Sequence[int] | None, usual: int, n_pos: int) -> list[int]:
    if positions is None:
        positions = min(max(usual, 1), n_pos - 1)
    listed = [positions] if isinstance(positions, int) else list(positions)
    if not listed or min(listed) < 1 or max(listed) >= n_pos:
        raise SettingError(f"Positions {listed} of rows of {n_pos} tokens: accepted are 1 to {n_pos - 1}.")
    return listed


def _mean_at(losses: Float[Tensor, "row pos"], positions: Sequence[int]) -> float:
    return float(losses[:, [position - 1 for position in positions]].double().nanmean())


def _losses(adapter: Adapter, batch: ModelInputs) -> Float[Tensor, "row pos"]:
    tokens, is_real = _tokens(batch), _is_real(batch)
    logits = adapter.run(*batch.args, **batch.kwargs)
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise InputError(
            f"The output has shape {tuple(logits.shape)} for tokens {tuple(tokens.shape)}. Losses of tokens need logits "
            "[row, pos, vocab], such as a language model's."
        )
    losses = next_token_losses(logits.to(torch.promote_types(logits.dtype, torch.float32)), tokens).cpu()
    counts = is_real[:, 1:] & is_real[:, :-1]
    if not bool(torch.isfinite(losses[counts]).all()):
        raise NonFiniteError("A token's loss is NaN or infinite. Check the model and its tokens.")
    return losses.masked_fill(~counts, float("nan"))


def _tokens(inputs: ModelInputs) -> Int[Tensor, "row pos"]:
    assert inputs.tokens is not None, "read_inputs was given tokens"
    return inputs.tokens.cpu()


def _is_real(inputs: ModelInputs) -> Bool[Tensor, "row pos"]:
    return torch.ones_like(_tokens(inputs), dtype=torch.bool) if inputs.mask is None else inputs.mask.cpu()


def _n_before(inputs: ModelInputs) -> Int[Tensor, "row pos"]:
    """How many real positions there are up to each one, itself included."""
    return _is_real(inputs).long().cumsum(1).clamp(min=1)
