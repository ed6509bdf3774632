"""Looking at features: highlighted tokens, the browser of neurons, the report."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from param_features.audit import Audit
from param_features.circuits import Circuit
from param_features.errors import InputError
from param_features.features.measuring import MeasuredFeatures
from param_features.machine import methods_in_own_modes, public
from param_features.problem import real_first
from param_features.report import report_on
from param_features.views import NeuronView, Page, choice_view, feature_view, neuron_view, show, tokens_view


@methods_in_own_modes
class ShownFeatures(MeasuredFeatures):
    """Features that can be displayed."""

    @public
    def view(self, feature: int | None = None, tokens: Any = None, *, n: int = 10) -> Page:
        """What `show` displays, as an object: `str()` is coloured text, a notebook draws it, `.save(path)` writes a page."""
        named = {"measured": self.measured, "noun": self.dictionary.kind[:-1]}
        if feature is not None:
            self.check_feature(feature)
        if tokens is None:
            if feature is None:
                raise InputError("Nothing to show. Give a feature, tokens to choose a feature on, or both.")
            return feature_view(feature, self.top_examples(feature, n), **named)
        strings, rows = self.texts(tokens)
        acts = real_first(self.activations_on(rows), rows)
        if feature is None:
            return choice_view(strings, acts, n=min(n, self.n_features), measured=self.measured)
        return tokens_view(feature, strings, acts[..., feature], **named)

    @public
    def show(self, feature: int | None = None, tokens: Any = None, *, n: int = 10) -> None:
        """Display a feature's top examples, its activations on given tokens or texts, or texts to choose a feature on.

        In a notebook with circuitsvis; in a terminal as coloured text. Blue is positive, red negative.

        Args:
            feature: Which one; without it, `tokens` are shown with their n most active features to choose from.
            tokens: Texts or ids to show instead of the top examples.
            n: How many top examples, or features to choose from.

        Raises:
            InputError: Neither a feature nor tokens are given.
            FeatureCountError: There is no such feature.
            NotBoundError: The features were loaded without a model.
            NonFiniteError: Activations are NaN or infinite.
        """
        show(self.view(feature, tokens, n=n))

    @public
    def view_neurons(self, tokens: Any, *, features: Sequence[int] | None = None) -> NeuronView:
        """What `show_neurons` displays, as an object."""
        for feature in features or ():
            self.check_feature(feature)
        strings, rows = self.texts(tokens)
        parts = self.dictionary.activation_parts(self.bound_engine("show"), self.question, rows)
        parts = torch.stack([real_first(part, rows) for part in parts.unbind(-2)], -2)
        return neuron_view(strings, parts, params=list(self.params), features=features, measured=self.measured)

    @public
    def show_neurons(self, tokens: Any, *, features: Sequence[int] | None = None) -> None:
        """Display texts in circuitsvis' browser of layers and neurons: the layers are parameters, the neurons features.

        The number at a token is what the parameter adds to the feature's activation there; the parameters' numbers sum to
        the activation. Cost: that of `activations` for each parameter; about 8 bytes of page a token, parameter and feature.

        Args:
            tokens: Texts or ids.
            features: Which ones to offer; all by default, the strongest here first.

        Raises:
            FeatureCountError: There is no such feature.
            NotBoundError: The features were loaded without a model.
            NonFiniteError: Activations are NaN or infinite.
        """
        show(self.view_neurons(tokens, features=features))

    @public
    def report(
        self,
        path: str | PathLike,
        *,
        tokens: Any = None,
        inputs: Any = None,
        sae: Any = None,
        hook_name: str | None = None,
        audit: Audit | None = None,
        circuit: Circuit | None = None,
        n_examples: int = 10,
        n_rows: int = 200,
    ) -> Path:
        """Write one self-contained page: metrics beside controls, a table of features, and each one's examples and numbers.

        The page asks no host for anything and runs no code but its own: tokens are shown as text, whatever they hold.
        Cost: a pass of activations over the rows, and one forward-mode pass for each feature.

        Args:
            path: The file, such as `"report.html"`; missing folders are made.
            tokens: Where to look; the held-out sequences of the fit by default.
            inputs: Instead of tokens, for modules that take none.
            sae: An SAE or a transcoder, its folder, or a pair (release, id) on the hub, whose features are put beside these;
                see `pf.compare`.
            hook_name: Where the SAE reads; what its metadata say by default.
            audit: What `features.audit()` returned, for a section of its own.
            circuit: A circuit, for a section of its own; nodes whose group names this fit's parameters link to its features.
            n_examples: Examples shown for each feature, each from another row.
            n_rows: Of what is given, the first so many are used.

        Returns:
            The file's path.

        Raises:
            NotBoundError: The features were loaded without a model.
            MissingExtraError: plotly, or with an SAE sae-lens, is not installed.
            InputError: Inputs that the model cannot take.
            ExportError: The circuit's parts do not fit together.
            SettingError: `n_examples` or `n_rows` is below 1.
        """
        self.bound_engine("report")
        return report_on(
            self,
            path,
            self.inputs_or_examples(tokens, inputs),
            sae=sae,
            hook_name=hook_name,
            audit=audit,
            circuit=circuit,
            n_examples=n_examples,
            n_rows=n_rows,
        )
