"""Showing features: token highlights by circuitsvis in notebooks, coloured text in terminals."""

from param_features.views.choice import ChoiceView, choice_view
from param_features.views.circuitsvis_page import check_finite
from param_features.views.neurons import NeuronView, neuron_view
from param_features.views.page import Page, show
from param_features.views.tokens import TokenRow, View, feature_view, tokens_view

__all__ = [
    "ChoiceView",
    "NeuronView",
    "Page",
    "TokenRow",
    "View",
    "check_finite",
    "choice_view",
    "feature_view",
    "neuron_view",
    "show",
    "tokens_view",
]
