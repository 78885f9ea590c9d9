"""Blank figures in the report's style, and SVG of drawn ones: the only file with matplotlib."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from typing import Any

from msdata.errors import needing
from mstrain.evaluation.report.wording import printable

# Okabe and Ito's palette, told apart with any kind of color vision (Wong 2011, Nature Methods 8,
# 441); the color map has the same property.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, GREY, PALE = "#1f2933", "#6b7780", "#d9dee2"
COLOUR_MAP = "cividis"
_DPI = 144
# Characters of a label; longer ones would leave no room for the panels.
_MAX_LABEL = 40

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    # Ids of the same figure are the same every time, and it looks the same everywhere.
    "svg.hashsalt": "mstrain",
    "svg.fonttype": "path",
    # Labels hold names of bands, units and columns: a "$" in one is a character, no formula.
    "text.parse_math": False,
    "text.usetex": False,
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn figure.

    Attributes:
        title: what the page calls it.
        alt: what it shows, in words, for those who do not see it.
        caption: how to read it.
        svg: the drawing.
        width_px: on the page, at most.
    """

    title: str
    alt: str
    caption: str
    svg: bytes
    width_px: int

    def data_uri(self) -> str:
        """The drawing as the source of an `<img>`."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode("ascii")


def check_installed() -> None:
    """Raises MissingPackageError unless matplotlib is installed."""
    with needing("the report's figures need matplotlib", "train", ", or give --no-report"):
        import matplotlib  # noqa: F401


class Canvas:
    """A figure being drawn; a context manager that keeps the style to itself.

    Args:
        width: inches.
        height: inches.
        rows: rows of panels.
        columns: columns of panels.
        **options: of `Figure.subplots`, such as `sharex`.

    Attributes:
        figure: matplotlib's.
        panels: its axes, row by row.
    """

    def __init__(
        self, width: float, height: float, *, rows: int = 1, columns: int = 1, **options: Any
    ) -> None:
        self._size = (width, height)
        self._grid = (rows, columns)
        self._options = options
        self.figure: Any = None
        self.panels: list[Any] = []

    def __enter__(self) -> Canvas:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._style: Any = matplotlib.rc_context(_STYLE)
        self._style.__enter__()
        self.figure = Figure(figsize=self._size, layout="constrained")
        FigureCanvasAgg(self.figure)
        self.figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
        found = self.figure.subplots(*self._grid, squeeze=False, **self._options)
        self.panels = list(found.ravel())
        return self

    def __exit__(self, *of_error: object) -> None:
        self._style.__exit__(*of_error)

    def drawing(self, kind: str, **metadata: str | None) -> bytes:
        """The figure as it is now, as a file's content.

        Args:
            kind: "svg" or "png".
            **metadata: of the file; None leaves out what matplotlib would write.
        """
        from matplotlib.text import Text

        for text in self.figure.findobj(Text):
            text.set_text(printable(text.get_text(), _MAX_LABEL))
        content = io.BytesIO()
        with warnings.catch_warnings():
            # A character that the font lacks is drawn as a box.
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            self.figure.savefig(content, format=kind, dpi=_DPI, metadata=metadata)
        return content.getvalue()

    def picture(self, title: str, *, alt: str, caption: str) -> Picture:
        """The figure as it is now."""
        return Picture(
            title=title,
            alt=alt,
            caption=caption,
            svg=self.drawing("svg", Date=None, Creator=None),
            width_px=round(self._size[0] * 96),
        )
