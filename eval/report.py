"""A training run as one page: `write_report` reads a run folder and writes `report.html` into it.

The page stands alone: no scripts, nothing fetched, pictures and plots inside it. What it reads is
whatever the folder holds so far, so it serves a run in progress as well as a finished one, and
nothing that it reads is trusted: text is escaped, pictures are decoded and encoded afresh.

A run folder holds, each part optional:
    config.yaml     shown as it is.
    metrics.jsonl   one JSON object per line. `"kind": "train"`: step, images_seen, loss, grad_norm,
                    lr, images_per_second, memory_gb, data_wait (share of time), seconds (of the
                    whole run so far, earlier processes included), `loss/<term>`.
                    `"kind": "validation"`: images_seen, weights, logsnr, eps_mse, mean.
                    Any line may state `parameters`.
    wiener.json     logsnr, eps_mse, images: the linear yardstick (`eval.wiener.yardstick`).
    samples/        `<images seen>.png` and `final.png`.
"""

import base64
import io
import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

_MAX_LINE = 2**20  # bytes of one metrics line
_MAX_CONFIG = 2**18
_MAX_BINS = 256
_MAX_POINTS = 1500  # of a curve in the page
_MAX_GRIDS = 12
_TRAIN_FIELDS = (
    "loss",
    "grad_norm",
    "lr",
    "images_per_second",
    "memory_gb",
    "data_wait",
    "seconds",
)
_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
# Plots are drawn in these colours, which the page then replaces by its own, light or dark.
_INKS = {
    "text": "#101011",
    "line": "#101012",
    "one": "#1668b8",
    "two": "#c4541c",
    "three": "#2b8a57",
}


@dataclass(frozen=True)
class _Validation:
    images_seen: int
    weights: str
    logsnr: tuple[float, ...]
    eps_mse: tuple[float, ...]
    mean: float


@dataclass
class _Run:
    """What metrics.jsonl and wiener.json say; curves are arrays over the train lines."""

    images_seen: np.ndarray
    curves: dict[str, np.ndarray]
    terms: dict[str, float] = field(default_factory=dict)
    steps: int | None = None
    parameters: int | None = None
    validations: list[_Validation] = field(default_factory=list)
    wiener: dict[float, float] = field(default_factory=dict)
    wiener_images: int | None = None
    unreadable: int = 0

    def of_weights(self) -> dict[str, list[_Validation]]:
        """Validations by the weights they measured, those with the lowest last mean first."""
        groups: dict[str, list[_Validation]] = {}
        for validation in self.validations:
            groups.setdefault(validation.weights, []).append(validation)
        last = {name: group[-1].mean for name, group in groups.items()}
        order = sorted(groups, key=lambda k: last[k] if math.isfinite(last[k]) else math.inf)
        return {name: groups[name] for name in order}


# -- reading -----------------------------------------------------------------------------------


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < 1e300 else math.nan


def _count(record: dict[str, Any], key: str) -> int | None:
    value = record.get(key)
    return value if type(value) is int and 0 <= value < 2**63 else None


def _bins(record: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    logsnr, errors = record.get("logsnr"), record.get("eps_mse")
    if not isinstance(logsnr, list) or not isinstance(errors, list):
        return None
    if len(logsnr) != len(errors) or len(logsnr) > _MAX_BINS:
        return None
    return tuple(map(_number, logsnr)), tuple(map(_number, errors))


def _records(path: Path) -> Iterator[dict[str, Any] | None]:
    """The lines as objects; None for one that is not. A last line still being written is left."""
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE):
            if not line.endswith(b"\n"):
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(_MAX_LINE)
                if rest:
                    yield None
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield record if isinstance(record, dict) else None


def _read_run(run_dir: Path) -> _Run:
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: no such run folder; give the run_dir of a training run")
    seen: list[int] = []
    columns: dict[str, list[float]] = {name: [] for name in _TRAIN_FIELDS}
    run = _Run(np.empty(0), {})
    metrics = run_dir / "metrics.jsonl"
    for record in _records(metrics) if metrics.is_file() else ():
        images = _count(record, "images_seen") if record else None
        if record is None or images is None:
            run.unreadable += 1
            continue
        run.parameters = _count(record, "parameters") or run.parameters
        if record.get("kind") == "train":
            seen.append(images)
            run.steps = _count(record, "step")
            for name, column in columns.items():
                column.append(_number(record.get(name)))
            run.terms = {k[5:]: _number(v) for k, v in record.items() if k.startswith("loss/")}
        elif record.get("kind") == "validation":
            if (bins := _bins(record)) is None:
                run.unreadable += 1
                continue
            weights, mean = str(record.get("weights", "")), _number(record.get("mean"))
            run.validations.append(_Validation(images, weights, *bins, mean))
    run.images_seen = np.array(seen, dtype=np.float64)
    run.curves = {name: np.array(column) for name, column in columns.items()}
    _read_wiener(run_dir / "wiener.json", run)
    return run


def _read_wiener(path: Path, run: _Run) -> None:
    if not path.is_file() or path.stat().st_size > _MAX_LINE:
        return
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(record, dict) and (bins := _bins(record)) is not None:
        run.wiener = dict(zip(*bins, strict=True))
        run.wiener_images = _count(record, "images")


# -- plots -------------------------------------------------------------------------------------


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a twentieth of the curve about each point, leaving out what is not finite."""
    half = len(values) // 40
    finite = np.isfinite(values)
    sums = np.cumsum(np.append(0.0, np.where(finite, values, 0.0)))
    counts = np.cumsum(np.append(0, finite))
    middle = np.arange(len(values))
    low, high = np.maximum(middle - half, 0), np.minimum(middle + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _thin(values: np.ndarray) -> np.ndarray:
    return values[:: max(1, -(-len(values) // _MAX_POINTS))]


def _count_label(value: float, _: object = None) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _axes(
    title: str, x_label: str = "images seen", size: tuple[float, float] = (5.6, 3.2)
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, color=_INKS["text"])
    axes.set_xlabel(x_label, color=_INKS["text"])
    axes.grid(True, color=_INKS["line"], alpha=0.16, linewidth=0.7)
    axes.tick_params(which="both", color=_INKS["line"], labelcolor=_INKS["text"], labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INKS["line"])
        spine.set_alpha(0.4)
    return figure, axes


def _log_y(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    minor = "25" if high < 30 * low else ""  # leading digits that get a label: few, or they collide
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if f"{value:e}"[0] in minor else ""
    )


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(frameon=False, fontsize=9, labelcolor=_INKS["text"])
        for text in legend.get_texts():
            text.set_parse_math(False)  # names from a file are not formulas


def _draw(axes: Axes, run: _Run, name: str, *, log: bool = False, scale: float = 1.0) -> None:
    """A train field over images seen: every line faintly, the smoothed curve over it."""
    raw = run.curves[name] * scale
    if log:
        raw = np.where(raw > 0, raw, np.nan)
    x = _thin(run.images_seen)
    axes.plot(x, _thin(raw), color=_INKS["one"], alpha=0.3, linewidth=0.9)
    axes.plot(x, _thin(_smooth(raw)), color=_INKS["one"], linewidth=1.9, label="training")
    axes.xaxis.set_major_formatter(_count_label)


def _draw_means(axes: Axes, run: _Run) -> None:
    colours = itertools.cycle(_INKS[name] for name in ("two", "three", "line"))
    for (name, group), colour in zip(run.of_weights().items(), colours, strict=False):
        points = [(v.images_seen, v.mean) for v in group if v.mean > 0]
        if points:
            label = f"validation, {name[:40]}"
            axes.plot(*zip(*points, strict=True), "o-", ms=4, color=colour, label=label)
    axes.xaxis.set_major_formatter(_count_label)
    _log_y(axes)
    _legend(axes)


def _curve(run: _Run, name: str, title: str, *, log: bool, scale: float) -> str:
    figure, axes = _axes(title)
    _draw(axes, run, name, log=log, scale=scale)
    if log:
        _log_y(axes)
    else:
        axes.set_ylim(bottom=0)
    return _svg(figure, name)


def _means(run: _Run) -> str:
    figure, axes = _axes("Validation eps-MSE, mean over λ")
    _draw_means(axes, run)
    return _svg(figure, "means")


def _spectrum(run: _Run, before: _Validation, after: _Validation) -> str:
    figure, axes = _axes("Validation eps-MSE at each noise level", "log-SNR λ (nats)")
    wiener = (tuple(run.wiener), tuple(run.wiener.values()))
    lines = (
        ("first", before.logsnr, before.eps_mse, "o:", _INKS["one"]),
        ("last", after.logsnr, after.eps_mse, "o-", _INKS["two"]),
        ("Wiener", *wiener, "s--", _INKS["three"]),
    )
    for label, x, y, style, colour in lines:
        points = sorted((a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and b > 0)
        if points:
            axes.plot(*zip(*points, strict=True), style, ms=4, color=colour, label=label)
    _log_y(axes)
    _legend(axes)
    return _svg(figure, "spectrum")


def _svg(figure: Figure, name: str) -> str:
    """The figure as an inline SVG that takes its colours and font from the page."""
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
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for ink, colour in _INKS.items():
        text = text.replace(colour, f"var(--{ink})")
    return f'<div class="plot">{text}</div>'


# -- pictures ----------------------------------------------------------------------------------


def _picture(path: Path, side: int) -> str | None:
    """A data URI of the picture, at most `side` pixels wide; None where it cannot be read (yet)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, *_BOMBS):
        return None
    picture.thumbnail((side, 4 * side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _samples(run_dir: Path) -> str:
    parts = []
    final = _picture(run_dir / "samples" / "final.png", 1600)
    if final:
        parts.append(
            '<section><h2>Final samples</h2><img class="final" alt="Final sample grid"'
            f' src="{final}"></section>'
        )
    folder = run_dir / "samples"
    named = folder.glob("*.png") if folder.is_dir() else ()
    grids = sorted((int(p.stem), p) for p in named if re.fullmatch(r"[0-9]{1,15}", p.stem))
    if len(grids) > _MAX_GRIDS:
        kept = np.linspace(0, len(grids) - 1, _MAX_GRIDS).round().astype(int)
        grids = [grids[i] for i in kept]
    figures = []
    for seen, path in grids:
        if source := _picture(path, 512):
            caption = f"{seen:,} images seen"
            figures.append(
                f'<figure id="grid-{seen}"><a href="#grid-{seen}"><img src="{source}"'
                f' alt="Samples after {caption}"></a><figcaption>{caption}</figcaption></figure>'
            )
    if figures:
        parts.append(
            '<section><h2>Samples over time</h2><p class="note">The same seeds and classes each'
            ' time. Click a grid to see it large.</p><div class="grids">'
            + "".join(figures)
            + "</div></section>"
        )
    return "".join(parts)


# -- page --------------------------------------------------------------------------------------


def _figure(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _facts(run: _Run) -> str:
    facts: list[tuple[str, str]] = []
    if len(run.images_seen):
        facts.append(("images seen", f"{int(run.images_seen[-1]):,}"))
    if run.steps is not None:
        facts.append(("optimiser steps", f"{run.steps:,}"))
    shown: tuple[tuple[str, Callable[[np.ndarray], float], str, Callable[[float], str]], ...] = (
        ("seconds", np.max, "wall time", _duration),
        ("images_per_second", np.median, "images/s, median", lambda v: f"{v:.4g}"),
        ("data_wait", np.mean, "of time waiting for data", lambda v: f"{100 * v:.1f}%"),
        ("memory_gb", np.max, "GB memory, peak", lambda v: f"{v:.3g}"),
    )
    for name, reduce, label, form in shown:
        values = run.curves[name][np.isfinite(run.curves[name])]
        if len(values):
            facts.append((label, form(float(reduce(values)))))
    if run.parameters is not None:
        facts.append(("parameters", f"{run.parameters:,}"))
    items = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)
    return f'<dl class="facts">{items}</dl>' if items else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], css: Sequence[str] = ()) -> str:
    """An HTML table of cells that are already escaped; `css` gives each row its class."""
    lines = ["<tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in head) + "</tr>"]
    for row, name in itertools.zip_longest(rows, css, fillvalue=""):
        cells = "".join(f"<td>{cell}</td>" for cell in row)
        lines.append(f'<tr class="{name}">{cells}</tr>')
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _training(run: _Run) -> str:
    plots = [
        ("loss", "Training loss", True, 1.0),
        ("grad_norm", "Gradient norm, before clipping", True, 1.0),
        ("lr", "Learning rate", False, 1.0),
        ("images_per_second", "Throughput (images/s)", False, 1.0),
        ("data_wait", "Time waiting for data (%)", False, 100.0),
    ]
    shown = [
        _curve(run, name, title, log=log, scale=scale)
        for name, title, log, scale in plots
        if np.isfinite(run.curves[name]).any()
    ]
    if not shown:
        return ""
    terms = ""
    if run.terms:
        rows = [(escape(name), _figure(value)) for name, value in run.terms.items()]
        terms = "<h3>Terms of the loss, last line</h3>" + _table(("term", "value"), rows)
    return f'<section><h2>Training</h2><div class="plots">{"".join(shown)}</div>{terms}</section>'


def _bin_table(run: _Run, before: _Validation, after: _Validation) -> str:
    first = dict(zip(before.logsnr, before.eps_mse, strict=True))
    rows, css = [], []
    for value, error in sorted(zip(after.logsnr, after.eps_mse, strict=True)):
        wiener = run.wiener.get(value, math.nan)
        ratio = error / wiener if wiener > 0 else math.nan
        cells = (first.get(value, math.nan), error, wiener, ratio)
        rows.append((f"{value:g}", *map(_figure, cells)))
        css.append("" if math.isnan(ratio) else "better" if ratio < 1 else "worse")
    head = ("log-SNR λ", "eps-MSE, first", "eps-MSE, last", "Wiener", "last / Wiener")
    return _table(head, rows, css)


def _validation(run: _Run) -> str:
    groups = run.of_weights()
    if not groups:
        return ""
    best, group = next(iter(groups.items()))
    before, after = group[0], group[-1]
    note = (
        f"Weights <code>{escape(best)}</code>, first measured after {before.images_seen:,} images"
        f" and last after {after.images_seen:,}. Unweighted mean squared error of the predicted"
        " noise on images held out from training; small λ is mostly noise, large λ mostly image."
    )
    if run.wiener:
        count = "" if run.wiener_images is None else f" to {run.wiener_images:,} images"
        note += (
            f" Wiener is a linear denoiser fitted{count} of the training set: a ratio below 1"
            " means the network knows more than its second-order statistics."
        )
    others = ""
    if len(groups) > 1:
        rows = [
            (escape(name), f"{g[-1].images_seen:,}", _figure(g[0].mean), _figure(g[-1].mean))
            for name, g in groups.items()
        ]
        head = ("weights", "images seen", "mean eps-MSE, first", "last")
        others = "<h3>All sets of weights</h3>" + _table(head, rows)
    plots = _spectrum(run, before, after) + _means(run)
    return (
        f'<section><h2>Validation</h2><p class="note">{note}</p><div class="plots">{plots}</div>'
        f"{_bin_table(run, before, after)}{others}</section>"
    )


def _config(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        data = file.read(_MAX_CONFIG + 1)
    text = escape(data[:_MAX_CONFIG].decode("utf-8", "replace"))
    more = f"\n… cut after {_MAX_CONFIG:,} bytes" if len(data) > _MAX_CONFIG else ""
    return f"<details><summary>Configuration</summary><pre>{text}{more}</pre></details>"


def _write(path: Path, data: bytes) -> Path:
    """Put the file in place whole: someone may be looking at the one before."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return path


def write_report(run_dir: Path) -> Path:
    """Write `report.html` for a training run, finished or in progress.

    Args:
        run_dir: the run's folder; the module's docstring lists what is read from it.

    Returns:
        The path of the page.

    Raises:
        ValueError: there is no such folder.
    """
    run_dir = Path(run_dir)
    run = _read_run(run_dir)
    name = escape(run_dir.resolve().name)
    warning = ""
    if run.unreadable:
        warning = (
            f'<p class="warning">{run.unreadable:,} lines of metrics.jsonl could not be read'
            " and are left out.</p>"
        )
    body = (
        f'<header><p class="over">Training run</p><h1>{name}</h1>{_facts(run)}{warning}</header>'
        + _samples(run_dir)
        + _validation(run)
        + _training(run)
        + _config(run_dir / "config.yaml")
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # A second lock: even if something hostile got through, nothing may run or be fetched.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{name} – training run</title><style>{_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
    return _write(run_dir / "report.html", page.encode("utf-8", "replace"))


def plot_losses(run_dir: Path) -> Path:
    """Write `losses.png`: training loss and mean validation eps-MSE over images seen.

    Args:
        run_dir: the run's folder.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is no such folder.
    """
    run_dir = Path(run_dir)
    run = _read_run(run_dir)
    figure, axes = _axes("Training loss and validation eps-MSE", size=(8.0, 4.5))
    _draw(axes, run, "loss", log=True)
    _draw_means(axes, run)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    return _write(run_dir / "losses.png", buffer.getvalue())


_STYLE = """
:root { color-scheme: light dark; --page: #fbfaf7; --card: #fff; --text: #1d1f23; --soft: #666b74;
  --line: #8a8f98; --edge: #e4e1d9; --one: #1f6fb5; --two: #c2501a; --three: #2c8a56; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --text: #e8e6e1;
  --soft: #9ba1ab; --edge: #2d313a; --one: #6db3f2; --two: #f2935c; --three: #69cc97; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 72px; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; margin: 0 0 20px;
  letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 10px; }
h3 { font-size: 1rem; margin: 24px 0 8px; }
section, details { background: var(--card); border: 1px solid var(--edge); border-radius: 14px;
  padding: 22px; margin-top: 22px; }
.over, .note, th, dt, figcaption { color: var(--soft); font-size: 0.87rem; }
.over, figure, dd { margin: 0; }
.note { max-width: 76ch; margin: 0 0 16px; }
.warning, tr.worse td:last-child { color: var(--two); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 18px 20px;
  margin: 0; }
.facts div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.facts dd { font-size: 1.3rem; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 20px; }
.plot svg { width: 100%; height: auto; display: block; }
.final { display: block; width: 100%; max-width: 820px; margin: 0 auto; border-radius: 8px; }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 220px), 1fr));
  gap: 16px; }
.grids img { width: 100%; display: block; border-radius: 6px; }
figure:target { grid-column: 1 / -1; }
.scroll { overflow-x: auto; margin: 16px 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; }
table, .facts { font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--edge); text-align: right; }
td { white-space: nowrap; }
@media (max-width: 600px) { section { padding: 14px; } th, td { padding: 4px 5px; } }
th:first-child, td:first-child { text-align: left; }
tr.better td:last-child { color: var(--three); font-weight: 600; }
summary { cursor: pointer; font-weight: 600; }
pre, code { font: 0.87rem/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-x: auto; }
@media print { section { break-inside: avoid; } }
"""
