"""Showing features: token highlights by circuitsvis in notebooks, coloured text in terminals."""

from param_features.views.tokens import View, feature_view, show, tokens_view

__all__ = ["View", "feature_view", "show", "tokens_view"]
