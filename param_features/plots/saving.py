"""Figures as files."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from param_features.errors import MissingExtraError, SettingError
from param_features.files import new_file
from param_features.machine import public

if TYPE_CHECKING:
    import plotly.graph_objects as go

_IMAGES = (".png", ".svg", ".pdf")


@public
def save(figure: "go.Figure", path: str | PathLike, *, scale: float = 2) -> Path:
    """Write a figure: `.html` is a page that needs no network (4.8 MB: plotly is inside), `.png`, `.svg` or `.pdf` an image.

    Cost: an image starts a Chrome or Chromium for a second or two.

    Args:
        figure: What a plot returned.
        path: Where to; the suffix says what.
        scale: Pixels of an image per pixel of the figure.

    Returns:
        The path.

    Raises:
        SettingError: The suffix is another.
        MissingExtraError: An image needs kaleido and a Chrome or Chromium, and one of them is missing.
    """
    path = new_file(path, "figure.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix not in (".html", *_IMAGES):
        raise SettingError(f"{path.name!r} ends in {path.suffix!r}. Accepted: .html, {', '.join(_IMAGES)}.")
    if path.suffix == ".html":
        figure.write_html(path, include_plotlyjs=True)
    else:
        path.write_bytes(_image(figure, path.suffix[1:], scale))
    return path


def _image(figure: "go.Figure", format: str, scale: float) -> bytes:
    try:
        import kaleido  # noqa: F401
        from choreographer.browsers.chromium import ChromeNotFoundError
    except ImportError as error:
        raise MissingExtraError(
            'Images of plots need kaleido, which cannot be imported. pip install "param_features[plots]" brings it; a path '
            "that ends in .html needs plotly alone."
        ) from error
    try:
        return figure.to_image(format=format, scale=scale)
    except (ChromeNotFoundError, RuntimeError) as error:
        if "chrom" not in str(error).lower():
            raise
        raise MissingExtraError(
            "Images of plots need Chrome or Chromium, and none was found. Install one (apt install chromium, or the command "
            "plotly_get_chrome), or set BROWSER_PATH to yours; a path that ends in .html needs none."
        ) from error
