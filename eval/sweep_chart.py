"""A picture of validation loss against averaging length."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure


def sweep_picture(lengths: Sequence[float], losses: Sequence[float]) -> bytes:
    """A PNG of the losses over the lengths, the lowest one marked.

    Args:
        lengths: averaging widths, increasing.
        losses: the mean validation eps-MSE of each.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(lengths, losses, "o-", ms=5, color="#1668b8")
    length, loss = min(zip(lengths, losses, strict=True), key=lambda point: point[1])
    axes.plot([length], [loss], "o", ms=12, mfc="none", mew=2, color="#c4541c")
    axes.annotate(f"{length:.3f}", (length, loss), (0, 12), textcoords="offset points", ha="center")
    axes.margins(y=0.2)
    axes.set_title("Validation eps-MSE, mean over λ", loc="left", fontsize=11)
    axes.set_xlabel("averaging length, as a share of training")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(True, alpha=0.25, linewidth=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    return buffer.getvalue()
