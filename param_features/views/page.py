"""What every view can do: print itself in a terminal, show itself in a notebook, save itself as a page."""

import html
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from param_features.files import new_file
from param_features.machine import public
from param_features.views.circuitsvis_page import script, whole_page
from param_features.views.notebook import kernel, takes_script
from param_features.views.terminal import plain, takes_colour


@dataclass(frozen=True)
class Page(ABC):
    """A view that can be shown and saved. `str()` is for terminals; notebooks take `_repr_html_`.

    Attributes:
        title: What is shown.
    """

    title: str

    @abstractmethod
    def __str__(self) -> str:
        """Coloured text for a terminal."""

    @property
    @abstractmethod
    def blocks(self) -> str:
        """The body as HTML, without circuitsvis' script."""

    def __repr__(self) -> str:
        """Text as the output takes it: coloured in a terminal, plain in pipes and files and where `NO_COLOR` is set."""
        return str(self) if takes_colour(sys.stdout) else plain(str(self))

    @public
    def save(self, path: str | PathLike) -> Path:
        """Write a complete page that needs no network, 1.3 MB; returns the path."""
        path = new_file(path, "view.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(whole_page(self.title, self._body), encoding="utf-8")
        return path

    @property
    def _body(self) -> str:
        return f"<h4>{html.escape(self.title)}</h4>{self.blocks}"

    def _repr_html_(self) -> str:
        """The body as HTML, with circuitsvis' script where the notebook's page does not have it yet."""
        body = self._body
        return f"{script()}{body}" if takes_script() else body


def show(page: Page) -> None:
    """Display a view in a notebook, or print it: coloured in a terminal, elsewhere with the marked token in «»."""
    if kernel() is None:
        sys.stdout.write(f"{page!r}\n")
        return
    from IPython.display import display

    display(page)
