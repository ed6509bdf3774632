"""Per-sample gradients of a parameter subset: one forward pass of a batch shared by one backward pass per slot.

A slot is one sample of every sequence of the batch (a position each), or the whole batch where a sample is an input.
Samples of different sequences do not mix, so one backward pass of the summed divergences yields a gradient for each.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from param_features.errors import AdapterError, NonFiniteError, OutputError
from param_features.gradients.capture import Capture, StopForward, capturing
from param_features.gradients.cotangents import Cotangents
from param_features.gradients.dense import dense_gradients
from param_features.gradients.factored import gradient_of_calls, gradient_of_uses
from param_features.gradients.head import LinearHead
from param_features.gradients.operations import Viewed, Watch
from param_features.gradients.owners import owners_of
from param_features.gradients.rows import at_least_float32
from param_features.gradients.types import Gradients
from param_features.params import Adapter, Modes, ParamSubset, Site, Tap, Watched, held_still
from param_features.problem import ModelInputs, Problem, SamplePositions

CotangentOf = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(outputs [sample d_output], row [sample], position [sample]) -> cotangents [sample d_output]."""

Consumer = Callable[[int, Gradients], None]
"""Takes a slot and its gradients, the batch's rows as samples."""

MOST_LOGITS = 2**25
"""Numbers of outputs of samples that exist together during a harvest: 128 MiB of logits in float32."""


@dataclass(frozen=True)
class Routes:
    """How each parameter's gradient is taken.

    Attributes:
        taps: For parameters with a factored rule, the taps of all their uses.
        watched: Parameters whose uses are noted at torch's operations, and how their matrices lie in them.
        dense: Parameters that take the `torch.func` route.
        through_head: Whether cotangents are first taken back through the head, so that no backward pass meets it.
        cut: The module whose input is the lowest place to which all positions' cotangents go in one pass; None without one.
        is_linear: Whether that head is one product, so that KL's cotangents are taken back without the outputs.
        is_vmapped: Whether the dense route maps over samples with vmap; one sample at a time otherwise.
        must_vmap: Whether inputs that vmap cannot map are an error, rather than taken one at a time.
        why_dense: The reason, for each dense parameter.
    """

    taps: dict[str, tuple[Tap, ...]]
    dense: tuple[str, ...] = ()
    watched: dict[str, Viewed] = field(default_factory=dict)
    through_head: bool = False
    is_linear: bool = False
    cut: nn.Module | None = None
    is_vmapped: bool = True
    must_vmap: bool = False
    why_dense: dict[str, str] = field(default_factory=dict)

    @property
    def factored(self) -> tuple[str, ...]:
        """Parameters that do not take the dense route."""
        return (*self.taps, *self.watched)

    def only(self, names: Collection[str]) -> "Routes":
        """The routes of some factored parameters alone."""
        taps = {name: taps for name, taps in self.taps.items() if name in names}
        return replace(self, taps=taps, watched={n: viewed for n, viewed in self.watched.items() if n in names}, dense=())


@dataclass(frozen=True)
class Origin:
    """What an engine was planned for, so that a change of the model is noticed.

    Attributes:
        problem: The question, with the rows that routes were checked on.
        watched: The parameters then, and the modules around them.
        forms: Of each parameter: the axes of its matrix, and how many modules hold it.
    """

    problem: Problem
    watched: Watched
    forms: Mapping[str, tuple[Modes, int]]


@dataclass(frozen=True)
class GradientEngine:
    """Takes per-sample gradients of `subset` in the adapter's model.

    Attributes:
        per_position: Whether a sample is a (sequence, position); otherwise it is an input.
        positions: Which positions of outputs are samples.
        gathering: Tapped outputs whose rows the model gathers, from every sample as many as there happen to be.
        remembered: What was found out about the model while it ran, such as that it has no forward mode.
        origin: What it was planned for; None for an engine that is not to follow its model.
        followers: The engine that was planned after the model changed, if it did; see `following`.
    """

    adapter: Adapter
    subset: ParamSubset
    routes: Routes
    per_position: bool
    positions: SamplePositions = SamplePositions()
    gathering: frozenset[Site] = frozenset()
    remembered: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    origin: Origin | None = field(default=None, compare=False, repr=False)
    followers: list["GradientEngine"] = field(default_factory=list, init=False, compare=False, repr=False)

    def located(self, inputs: ModelInputs) -> ModelInputs:
        """The inputs, and which positions of their outputs are samples; errors are those of `SamplePositions.located`."""
        return self.positions.located(self.adapter, inputs) if self.per_position else inputs

    @property
    def device(self) -> torch.device:
        """The device on which the first of the parameters lies."""
        return self.subset.device

    def each_slot(
        self,
        inputs: ModelInputs,
        positions: Int[Tensor, "batch slot"],
        cotangent_of: CotangentOf,
        consume: Consumer,
    ) -> None:
        """Call `consume` with the gradients of each slot; only one slot's gradients exist at a time.

        Memory: the forward pass, one slot's gradients, and the outputs of as many samples as fit in 128 MiB; more slots
        take no more.

        Args:
            inputs: One batch.
            positions: Which position of each sequence each slot takes; zeros when a sample is an input.
            cotangent_of: Gives ∂D/∂f; asked once for all samples of the batch, or for a few slots at a time where outputs
                are wide.
            consume: Takes the slot's index and its gradients.

        Raises:
            NonFiniteError: The model's output holds NaN or infinity.
        """
        with held_still(self.adapter.module):
            with self.capturing(len(inputs)) as capture:
                root = self.root(inputs, capture)
            cut = root if capture.kept_input is None else capture.kept_input
            d_root = root.shape[-1] if self.per_position else root[0].numel()
            self._find_owners(capture, cut, inputs.n_pos)
            for slots in self.slot_groups(len(positions), positions.shape[1], d_root):
                at_root = self._root_cotangents(root.detach(), positions[:, slots], cotangent_of)
                with self.running_again(len(inputs)):
                    cotangents = _at_cut(root, cut, at_root, positions[:, slots].to(root.device))
                for slot, at_cut in zip(slots.tolist(), cotangents.unbind(1), strict=True):
                    cotangent = self._spread(cut, at_cut, positions[:, slot])
                    is_last = slot == positions.shape[1] - 1
                    gradients = self._factored(capture, cut, cotangent, keep_graph=not is_last)
                    gradients |= self._dense(inputs, cotangent)
                    consume(slot, {name: gradients[name] for name in self.subset.names})

    @property
    def taps(self) -> list[Tap]:
        """The taps of all parameters with a factored rule."""
        return [tap for chosen in self.routes.taps.values() for tap in chosen]

    def capturing(self, n_rows: int) -> AbstractContextManager[Capture]:
        """Capture what the routes need of a forward pass of some rows."""
        return capturing(self.taps, stop_at=self.stop_at, keep=self.routes.cut, watch=self._watch(n_rows))

    def running_again(self, n_rows: int) -> AbstractContextManager[Capture]:
        """Go around a backward pass: layers that are checkpointed run again in it, and must do what they did."""
        return capturing(self.taps, watch=self._watch(n_rows))

    def _watch(self, n_rows: int) -> Watch | None:
        """Notes the uses of the parameters that are watched at operations; None without any."""
        watched = self.routes.watched.values()
        if not watched:
            return None
        shared = [viewed.view.stored for viewed in watched if viewed.is_shared]
        return Watch([viewed.view.stored for viewed in watched], shared, n_rows)

    @property
    def stop_at(self) -> nn.Module | None:
        """The module at whose call the forward pass ends; None where it runs to its end."""
        return self.adapter.head() if self.routes.through_head else None

    def slot_groups(self, n_rows: int, n_slots: int, d_root: int) -> tuple[Tensor, ...]:
        """Slots whose outputs exist together: few enough for memory, and two samples at least, to compare one another.

        Outputs are as wide as what backward passes start from, `d_root`, or as the vocabulary where it is known.
        """
        d_output = d_root
        if self.routes.through_head and self.adapter.d_vocab:
            d_output = self.adapter.d_vocab
        n_wanted = -(-n_rows * n_slots * d_output // MOST_LOGITS)
        n_most = n_slots if n_rows > 1 else n_slots // 2
        return torch.arange(n_slots).tensor_split(max(1, min(n_wanted, n_most)))

    def d_root(self, d_output: int) -> int:
        """The width of what backward passes start from, given an output's: the head's input, where they start there."""
        return getattr(self.adapter.head(), "in_features", d_output) if self.routes.through_head else d_output

    def root(self, inputs: ModelInputs, capture: Capture) -> Tensor:
        """The tensor that backward passes start from: the head's input, or the output."""
        head = self.adapter.head()
        if head is None or not self.routes.through_head:
            return self.adapter.run(*inputs.args, **inputs.kwargs)
        try:
            self.adapter.run(*inputs.args, **inputs.kwargs)
        except StopForward:
            return capture.inputs[Site(head, 0)][-1]
        raise OutputError("The model's forward pass never called its head; this is a fault of the adapter's head().")

    def _root_cotangents(
        self, root: Tensor, positions: Int[Tensor, "batch slot"], cotangent_of: CotangentOf
    ) -> Float[Tensor, "batch slot d_root"]:
        """Cotangents at the root for all samples of some slots: one product with the head for all of them."""
        n_rows, n_slots = positions.shape
        row = torch.arange(n_rows, device=root.device).repeat(n_slots)
        position = positions.T.reshape(-1).to(root.device)
        states = root[row, position] if self.per_position else root.reshape(n_rows, -1)
        pulled = self._through_head(states, row, position, cotangent_of)
        return pulled.reshape(n_slots, n_rows, -1).transpose(0, 1)

    def _through_head(self, states: Tensor, row: Tensor, position: Tensor, cotangent_of: CotangentOf) -> Tensor:
        if not self.routes.through_head:
            return cotangent_of(check_finite_output(at_least_float32(states)), row, position)
        below = self._below_head(states, row, cotangent_of)
        if below is not None:
            return below
        leaf = states.unsqueeze(1).requires_grad_()
        output = at_least_float32(self._head_alone(leaf).squeeze(1))
        cotangent = cotangent_of(check_finite_output(output.detach()), row, position)
        return torch.autograd.grad(output, leaf, cotangent)[0].squeeze(1)

    def _below_head(self, states: Tensor, row: Tensor, cotangent_of: CotangentOf) -> Tensor | None:
        """The cotangents below a linear head without its outputs, None where these are needed."""
        head = LinearHead.of(self.adapter) if self.routes.is_linear else None
        if head is None or not isinstance(cotangent_of, Cotangents):
            return None
        cotangents = cotangent_of.below(head, states.to(head.weight.device), row)
        return None if cotangents is None else check_finite_output(cotangents, d_output=len(head.weight)).to(states.device)

    def _head_alone(self, states: Float[Tensor, "sample one d_model"]) -> Float[Tensor, "sample one d_output"]:
        """Call the head without its hooks, since the user's expect whole batches."""
        head = self.adapter.head()
        assert head is not None, "the route through the head is taken where there is one"
        return head.forward(states)

    def _spread(self, root: Tensor, cotangent: Float[Tensor, "batch d_root"], position: Int[Tensor, " batch"]) -> Tensor:
        """Cotangents of one slot at their places in the root, zero elsewhere."""
        if not self.per_position:
            return cotangent.reshape(root.shape)
        spread = torch.zeros_like(root)
        spread[torch.arange(len(root), device=root.device), position.to(root.device)] = cotangent.to(root.dtype)
        return spread

    def _factored(self, capture: Capture, root: Tensor, cotangent: Tensor, *, keep_graph: bool) -> Gradients:
        if not self.routes.factored:
            return {}
        sites = list(dict.fromkeys(tap.output for taps in self.routes.taps.values() for tap in taps))
        calls = [(site, index) for site in sites for index in range(len(capture.outputs[site]))]
        roots = [capture.outputs[site][index] for site, index in calls] + [use.output for use in capture.uses]
        if not roots and not self.gathering.issuperset(sites):
            raise AdapterError("the layer that holds it is never called as a module")
        settings = {"retain_graph": keep_graph, "allow_unused": True, "materialize_grads": True}
        with self.running_again(len(root)):
            gradients = torch.autograd.grad(root, roots, cotangent, **settings) if roots else ()
        deltas = dict(zip(calls, gradients, strict=False))
        of_uses = dict(zip(map(id, capture.uses), gradients[len(calls) :], strict=True))
        n_rows, shapes = len(root), {view.name: view.matrix_shape for view in self.subset.views}
        found = {
            name: gradient_of_calls(taps, capture, deltas, n_rows, shapes[name]) for name, taps in self.routes.taps.items()
        }
        return found | {name: gradient_of_uses(viewed, capture, of_uses) for name, viewed in self.routes.watched.items()}

    def _find_owners(self, capture: Capture, root: Tensor, n_pos: int) -> None:
        """Note which samples the rows of gathered calls belong to."""
        with self.running_again(len(root)):
            for site in self.gathering.intersection(tap.output for tap in self.taps):
                capture.owners[site] = owners_of(capture.outputs[site], root, n_pos)

    def _dense(self, inputs: ModelInputs, cotangent: Tensor) -> Gradients:
        if not self.routes.dense:
            return {}
        subset = ParamSubset(tuple(self.subset[name] for name in self.routes.dense))
        maps, must_map = self.routes.is_vmapped, self.routes.must_vmap
        return dense_gradients(self.adapter, subset, inputs, cotangent, maps=maps, must_map=must_map)


def _at_cut(
    root: Tensor, cut: Tensor, cotangents: Float[Tensor, "batch slot d_root"], positions: Int[Tensor, "batch slot"]
) -> Float[Tensor, "batch slot d_cut"]:
    """Cotangents of some slots at the cut, from those at the root, by one backward pass.

    As many passes as a row has slots of the same position, which short rows of a padded batch have.
    """
    if cut is root:
        return cotangents
    row = torch.arange(len(root), device=root.device).unsqueeze(1).expand_as(positions)
    n_before = (positions.unsqueeze(2) == positions.unsqueeze(1)).tril(-1).sum(2)
    at_cut = torch.empty(*positions.shape, cut.shape[-1], dtype=cotangents.dtype, device=cut.device)
    for turn in range(int(n_before.max()) + 1):
        chosen = n_before == turn
        where = row[chosen], positions[chosen]
        spread = torch.zeros_like(root)
        spread[where] = cotangents[chosen].to(root.dtype)
        gradient = torch.autograd.grad(root, cut, spread, retain_graph=True)[0].to(at_cut.dtype)
        at_cut[chosen.to(cut.device)] = gradient[tuple(index.to(cut.device) for index in where)]
    return at_cut


def check_finite_output(output: Tensor, *, d_output: int | None = None) -> Tensor:
    """The output itself, or what was computed from it where `d_output` says its own width. Cost: one pass, no copy.

    Raises:
        NonFiniteError: It holds NaN or infinity.
    """
    if output.numel() and not all(bool(torch.isfinite(end)) for end in output.aminmax()):
        shape = tuple(output.shape) if d_output is None else (*output.shape[:-1], d_output)
        raise NonFiniteError(
            f"The model's output of shape {shape} holds NaN or infinity. Check the weights and the inputs; "
            "a model in float16 may overflow, try bfloat16 or float32."
        )
    return output
