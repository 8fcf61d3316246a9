"""A drawn figure as SVG text that can stand inside a page, several to a page."""

import io
import re

import matplotlib as mpl
from matplotlib.figure import Figure


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as one `<svg>` element in the page's font.

    Args:
        figure: what is drawn.
        name: prefix of every id inside, unlike any other figure's in the page.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (xmlns(:xlink)?|width|height)="[^"]*"', "", text, count=4)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href=", "href=")
    # Parts are numbered alike in every plot, and an id may occur once in a page.
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
