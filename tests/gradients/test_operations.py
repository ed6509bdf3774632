"""Layers that show no module around their parameters: every use is noted at torch's operations, and equals autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from tests.models import Between, Recurrent, built, integers, normal
from tests.oracle import assert_equal_gradients, case_of


class Language(nn.Module):
    """Tokens to logits, embedding and logits tied, positions as `positions` has them."""

    def __init__(self, positions: nn.Module, *, d_model: int = 4, padding_idx: int | None = None) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(7, d_model, padding_idx), positions
        self.mix, self.lm_head = nn.Linear(d_model, d_model), nn.Linear(d_model, 7, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.positions(self.embed(tokens))
        return self.lm_head(x.cumsum(1) + torch.tanh(self.mix(x)))


class Table(nn.Module):
    """Positions from an `nn.Embedding`, called with indices of some shape."""

    def __init__(self, index, d_model: int = 4) -> None:
        super().__init__()
        self.table, self.index = nn.Embedding(8, d_model), index

    def forward(self, x):
        return x + self.table(self.index(torch.arange(x.shape[1]), len(x)))


class Offset(nn.Embedding):
    """OPT's: computes its own indices."""

    def forward(self, x):
        return x + super().forward(torch.arange(x.shape[1]).expand(len(x), -1) + 2)


class Raw(nn.Module):
    """Positions in a Parameter of its own, added by `add`."""

    def __init__(self, shape, add) -> None:
        super().__init__()
        self.table, self.add = nn.Parameter(torch.zeros(shape)), add

    def forward(self, x):
        return self.add(x, self.table)


class Own(nn.Module):
    """Parameters of its own, used by `use`."""

    def __init__(self, use, *shapes) -> None:
        super().__init__()
        self.parts, self.use = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes]), use

    def forward(self, x):
        return self.use(x, *self.parts)


class Attention(nn.Module):
    """Attention of `self`, of `keys` that are another sequence, or of three different ones."""

    def __init__(self, kind: str = "self", mask=None, **settings) -> None:
        super().__init__()
        self.attention, self.kind, self.mask = nn.MultiheadAttention(8, 2, **settings), kind, mask
        self.is_batch_first = settings.get("batch_first", False)

    def forward(self, x):
        size = {"key": self.attention.kdim or 8, "value": self.attention.vdim or 8}
        others = {"self": (x, x), "keys": (x.flip(1),) * 2}.get(
            self.kind, (x.flip(1)[..., : size["key"]], x.sin()[..., : size["value"]])
        )
        inputs = [each if self.is_batch_first else each.transpose(0, 1) for each in (x, *others)]
        masks = {"none": {}, "causal": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(x.shape[1]).double()}}
        masks["padding"] = {"key_padding_mask": (x[..., 0] > 0) & (torch.arange(x.shape[1]) > 0)}
        output, weights = self.attention(*inputs, need_weights=self.mask == "padding", **masks[self.mask or "none"])
        output = output if self.is_batch_first else output.transpose(0, 1)
        return output.cumsum(1) if weights is None else output.cumsum(1) + weights.sum(2, keepdim=True)


class Steps(nn.Module):
    """A recurrent cell in a loop of the user's own."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class Layers(nn.Module):
    """A recurrent layer whose last step is read, and its final state with it; sequence first where it wants that."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        output, final = self.layer(x if self.layer.batch_first else x.transpose(0, 1))
        output = output if self.layer.batch_first else output.transpose(0, 1)
        final = final[-1] if isinstance(final, tuple) else final
        return torch.cat([output[:, 1], final.transpose(0, 1).flatten(1)], 1)


class Router(nn.Module):
    """A mixture of experts as transformers writes it: a router with a Parameter of its own, rows merged."""

    def __init__(self, cast=None) -> None:
        super().__init__()
        self.weight, self.cast = nn.Parameter(torch.zeros(3, 4)), cast
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        weight = self.weight if self.cast is None else self.cast(self.weight)
        scores, chosen = functional.softmax(functional.linear(rows, weight), -1).topk(2, -1)
        outputs = torch.stack([expert(rows) for expert in self.experts], 1)
        return (outputs.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4)) * scores.unsqueeze(-1)).sum(1).reshape(x.shape)


SEQUENCE = normal(3, 5, 4)
POSITIONS = {
    "an index for every row": Table(lambda index, n: index.expand(n, -1)),
    "one row of indices": Table(lambda index, n: index.unsqueeze(0)),
    "indices without rows": Table(lambda index, n: index),
    "an own index": Offset(8, 4),
    "a Parameter, sliced": Raw((8, 4), lambda x, table: x + table[: x.shape[1]]),
    "a Parameter with a row": Raw((1, 8, 4), lambda x, table: x + table[:, : x.shape[1]]),
    "a Parameter, unsqueezed": Raw((8, 4), lambda x, table: x + table[: x.shape[1]].unsqueeze(0)),
    "a Parameter, expanded": Raw((8, 4), lambda x, table: x + table[: x.shape[1]].expand(len(x), -1, -1).clone()),
    "a Parameter, subtracted half": Raw((8, 4), lambda x, table: torch.add(x, table[: x.shape[1]], alpha=-0.5)),
    "a Parameter, by index": Raw((8, 4), lambda x, table: x + table[torch.arange(x.shape[1]).expand(len(x), -1), :]),
    "a Parameter, counted from behind": Raw((8, 4), lambda x, table: x + table[-torch.ones(len(x), 1, dtype=torch.long)]),
    "a class token": Raw((1, 1, 4), lambda x, token: torch.cat([token.expand(len(x), -1, -1), x], 1)[:, 1:] + token),
}
PLAIN = {
    "linear": Own(functional.linear, (3, 4), 3),
    "transposed": Own(lambda x, weight: x @ weight.T, (3, 4)),
    "from the left": Own(lambda x, weight, bias: torch.matmul(x, weight) + bias, (4, 3), 3),
    "half of the rows": Own(lambda x, weight: functional.linear(x, weight[2:4]), (6, 4)),
    "twice": Own(lambda x, weight: functional.linear(torch.tanh(functional.linear(x, weight)), weight), (4, 4)),
    "by halves": Own(lambda x, weight: x @ weight.chunk(2)[1].t() - x.sin() @ weight.chunk(2)[0].t(), (6, 4)),
    "from both sides": Own(lambda x, weight: x.sin() @ weight + x @ weight.mT, (4, 4)),
    "a block of it": Own(lambda x, weight: x[..., :3] @ weight[1:4, :3] + functional.linear(x, weight[:3, :4]), (5, 6)),
    "gain": Own(lambda x, weight: weight * x, 4),
    "gain of one more": Own(lambda x, weight: (1 + weight) * x * (2 - weight), 4),
    "gain of two axes": Own(lambda x, weight: x * weight, (5, 4)),
    "cast": Own(lambda x, weight: functional.linear(x.float(), weight.to(torch.float32)).double(), (3, 4)),
    "merged rows": Own(lambda x, weight, b: (x.flatten(0, 1) @ weight + b).unflatten(0, x.shape[:2]), (4, 3), 3),
    "router": Router(),
    "router with a cast": Router(lambda weight: weight.type(torch.float64)),
}
RECURRENT = {
    "rnn": Layers(nn.RNN(4, 3)),
    "rnn with relu": Layers(nn.RNN(4, 3, nonlinearity="relu", batch_first=True)),
    "gru": Layers(nn.GRU(4, 3, batch_first=True, num_layers=2, bidirectional=True)),
    "gru without bias": Layers(nn.GRU(4, 3, bias=False)),
    "lstm": Layers(nn.LSTM(4, 3, num_layers=2, bidirectional=True)),
    "lstm, batch first": Recurrent(),
    "lstm with a projection": Layers(nn.LSTM(4, 3, proj_size=2, batch_first=True)),
    "lstm cells": Steps(nn.LSTMCell(4, 3)),
    "gru cells": Steps(nn.GRUCell(4, 3, bias=False)),
    "rnn cells": Steps(nn.RNNCell(4, 3, nonlinearity="relu")),
}
ATTENTION = {
    "batch first": Attention(batch_first=True),
    "sequence first": Attention(),
    "without bias": Attention(bias=False, mask="causal"),
    "padded, with weights": Attention(mask="padding", batch_first=True),
    "of other keys": Attention("keys"),
    "of three sequences": Attention("three", batch_first=True),
    "of other widths": Attention("three", kdim=5, vdim=6),
    "zeros added": Attention(add_zero_attn=True, mask="causal"),
    "encoder layer": nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
    "encoder layer, norm first": nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True),
    "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False),
}


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_positions_and_tied_embeddings_stay_factored(positions):
    case = case_of(built(Language(positions)), tokens=integers(7, 3, 5))
    assert case.engine.routes.why_dense == {}
    assert "embed.weight" in case.engine.routes.watched
    assert_equal_gradients(case.gradients()[0], case.by_autograd())


@pytest.mark.parametrize("kind", PLAIN.values(), ids=PLAIN)
def test_parameters_without_a_layer_stay_factored(kind):
    case = case_of(built(Between(kind)), inputs=SEQUENCE)
    assert case.engine.routes.why_dense == {}
    tolerance = 1e-6 if kind is PLAIN["cast"] else 1e-9
    assert_equal_gradients(case.gradients()[0], case.by_autograd(), tolerance)


@pytest.mark.parametrize("layer", RECURRENT.values(), ids=RECURRENT)
def test_recurrent_layers_stay_factored(layer):
    case = case_of(built(layer), inputs=SEQUENCE)
    assert case.engine.routes.why_dense == {}
    assert_equal_gradients(case.gradients()[0], case.by_autograd())


@pytest.mark.parametrize("layer", ATTENTION.values(), ids=ATTENTION)
def test_attention_stays_factored(layer):
    case = case_of(built(Between(layer)), inputs=normal(3, 5, 8))
    assert case.engine.routes.why_dense == {}
    assert_equal_gradients(case.gradients()[0], case.by_autograd())


@pytest.mark.parametrize(
    ("model", "part", "x"),
    [
        (Between(Attention(batch_first=True)), "layer.attention.in_proj_weight[q|v]", normal(3, 5, 8)),
        (Between(Attention("keys")), "layer.attention.in_proj_bias[k]", normal(3, 5, 8)),
        (Layers(nn.LSTM(4, 3)), "layer.weight_hh_l0[f]", SEQUENCE),
        (Layers(nn.GRU(4, 3)), "layer.bias_ih_l0[n]", SEQUENCE),
    ],
    ids=["attention", "attention's bias", "lstm", "gru's bias"],
)
def test_parts_of_fused_matrices_stay_factored(model, part, x):
    case = case_of(built(model), part, inputs=x)
    assert case.engine.routes.why_dense == {}
    assert_equal_gradients(case.gradients()[0], case.by_autograd())


class Packed(Layers):
    """A packed sequence, whose steps are no axis of the samples'."""

    def forward(self, x):
        lengths = torch.full((len(x),), x.shape[1])
        return self.layer(pack_padded_sequence(x, lengths, batch_first=True))[1].transpose(0, 1).flatten(1)


NOT_UNDERSTOOD = {
    "an operation without a rule": Own(lambda x, weight: torch.einsum("npi,oi->npo", x, weight), (3, 4)),
    "known and unknown": Own(lambda x, weight: x @ weight + torch.einsum("npi,io->npo", x, weight), (4, 4)),
    "a square of it": Own(lambda x, weight: x @ (weight * weight), (4, 4)),
    "twice as large": Own(lambda x, weight: x @ (2 * weight), (4, 4)),
    "another arrangement": Own(lambda x, weight: x @ weight.reshape(4, 6), (6, 4)),
    "sequence first": Own(lambda x, weight: torch.tanh(x.transpose(0, 1) @ weight).transpose(0, 1).cumsum(1), (4, 4)),
    "in place": Own(lambda x, weight: x.sin().add_(weight), 4),
    "reduced before its use": Own(lambda x, weight: x * weight.sum(), (4, 4)),
    "packed sequence": Packed(nn.GRU(4, 3)),
    "clipped table": Raw((8, 4), lambda x, t: x + functional.embedding(torch.zeros(len(x), 1, dtype=int), t, None, 9.0)),
    "gathered rows": Own(lambda x, weight: x.masked_scatter(x[..., :1] > 0, x[x[..., 0] > 0] @ weight), (4, 4)),
    "a mask as index": Raw((8, 4), lambda x, table: x + table[torch.arange(8) < 5]),
}


@pytest.mark.parametrize("kind", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD)
def test_what_cannot_be_told_apart_takes_the_dense_route(kind):
    case = case_of(built(Between(kind)), inputs=SEQUENCE)
    assert case.engine.routes.watched == {}
    assert_equal_gradients(case.gradients()[0], case.by_autograd())


def test_a_padding_row_of_a_tied_table_has_the_gradient_of_its_other_use_alone():
    case = case_of(built(Language(nn.Identity(), padding_idx=-4)), "embed.weight", tokens=integers(7, 3, 5))
    assert case.engine.routes.why_dense == {}
    assert_equal_gradients(case.gradients()[0], case.by_autograd())


def test_tied_tables_are_kept_as_factors_where_that_is_smaller():
    """Of a table of 300 by 40, the five rows that are read and the logits of five positions."""

    class Wide(Language):
        def __init__(self):
            super().__init__(nn.Identity(), d_model=40)
            self.embed = nn.Embedding(300, 40)
            self.lm_head = nn.Linear(40, 300, bias=False)
            self.lm_head.weight = self.embed.weight

    case = case_of(built(Wide()), "embed.weight", tokens=integers(300, 3, 5))
    found = []
    case.engine.each_slot(case.data, case.last_positions, lambda out, *_: out, lambda _, part: found.append(part))
    assert found[0]["embed.weight"].delta.shape == (3, 10, 40)
