"""`nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells, step by step: torch's own kernels show nothing of what their gates get.

A packed sequence has no axis for samples, and is left to the dense route.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from param_features.gradients.operations.plain import linear
from param_features.gradients.operations.watch import Watch, handles

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, Tensor, State], State]
"""(gates of the input, gates of the state, state) -> the next state, whose first tensor is the output."""


def _lstm(of_input: Tensor, of_state: Tensor, state: State) -> State:
    enter, forget, candidate, leave = (of_input + of_state).chunk(4, -1)
    memory = forget.sigmoid() * state[1] + enter.sigmoid() * candidate.tanh()
    return leave.sigmoid() * memory.tanh(), memory


def _gru(of_input: Tensor, of_state: Tensor, state: State) -> State:
    (reset, update, new), (reset_h, update_h, new_h) = of_input.chunk(3, -1), of_state.chunk(3, -1)
    candidate = (new + (reset + reset_h).sigmoid() * new_h).tanh()
    return (candidate + (update + update_h).sigmoid() * (state[0] - candidate),)


def _rnn(activation: Callable[[Tensor], Tensor], of_input: Tensor, of_state: Tensor, state: State) -> State:
    return (activation(of_input + of_state),)


_LAYERS: dict[Callable, Cell] = {
    torch.lstm: _lstm,
    torch.gru: _gru,
    torch.rnn_tanh: partial(_rnn, torch.tanh),
    torch.rnn_relu: partial(_rnn, torch.relu),
}
_CELLS: dict[Callable, Cell] = {
    torch.lstm_cell: _lstm,
    torch.gru_cell: _gru,
    torch.rnn_tanh_cell: partial(_rnn, torch.tanh),
    torch.rnn_relu_cell: partial(_rnn, torch.relu),
}


def _layer(cell: Cell, watch: Watch, *args: Any, **kwargs: Any) -> Any:
    """All layers and directions, dropout left out as in evaluation mode."""
    if kwargs or not isinstance(args[2], tuple | list):  # a packed sequence has its batch sizes in the second place
        return NotImplemented
    input, initial, weights, has_biases, n_layers, _, _, is_bidirectional, is_batch_first = args
    states = [initial] if isinstance(initial, Tensor) else list(initial)
    n_directions = 2 if is_bidirectional else 1
    n_each = len(weights) // (n_layers * n_directions)
    sequence, ends = input if is_batch_first else input.transpose(0, 1), []
    for layer in range(n_layers):
        outputs = []
        for place in range(layer * n_directions, (layer + 1) * n_directions):
            own = weights[place * n_each : (place + 1) * n_each]
            state, is_backward = tuple(part[place] for part in states), place % n_directions == 1
            output, end = _run(watch, cell, sequence, state, own, has_biases, is_backward)
            outputs.append(output)
            ends.append(end)
        sequence = torch.cat(outputs, -1)
    final = [torch.stack(parts) for parts in zip(*ends, strict=True)]
    return sequence if is_batch_first else sequence.transpose(0, 1), *final


def _run(
    watch: Watch, cell: Cell, sequence: Tensor, state: State, weights: list[Tensor], has_biases: bool, is_backward: bool
) -> tuple[Tensor, State]:
    """One layer in one direction over [batch pos d]."""
    of_input, of_state, *others = weights
    input_bias, state_bias = others[:2] if has_biases else (None, None)
    projection = others[2 if has_biases else 0 :]
    gates, outputs = linear(watch, sequence, of_input, input_bias), []
    for each in gates.flip(1).unbind(1) if is_backward else gates.unbind(1):
        state = cell(each, linear(watch, state[0], of_state, state_bias), state)
        if projection:
            state = linear(watch, state[0], projection[0]), *state[1:]
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if is_backward else outputs, 1), state


def _cell(cell: Cell, watch: Watch, input: Tensor, initial: Any, *weights: Any) -> Any:
    of_input, of_state, input_bias, state_bias = (*weights, None, None)[:4]
    state = (initial,) if isinstance(initial, Tensor) else tuple(initial)
    gates = linear(watch, input, of_input, input_bias), linear(watch, state[0], of_state, state_bias)
    new = cell(*gates, state)
    return new[0] if isinstance(initial, Tensor) else new


for _operation, _of_layer in _LAYERS.items():
    handles(_operation)(partial(_layer, _of_layer))
for _operation, _of_cell in _CELLS.items():
    handles(_operation)(partial(_cell, _of_cell))
