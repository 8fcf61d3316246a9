"""Icon fonts as a training set: vector glyphs, drawn in white on tiles coloured by their class.

Real, varied, clean images at any size, from a package registry: the data of the quickstart and of
the ablations. The glyphs come with the documentation theme mkdocs-material, which is not imported.
"""

import colorsys
import hashlib
import importlib.metadata
import importlib.util
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.building.build_set import build_set
from data_pipelines.building.report import BuildReport
from data_pipelines.sample import Rejected, Sample
from data_pipelines.sources.base import Item

_REMEDY = "install it with `pip install -c constraints.txt -e '.[icons]'`"
_OTHER = "other"
_SVG = "{http://www.w3.org/2000/svg}"
_DRAWING = 1  # to be raised when the same icon comes out as other pixels
_SLATE = "#546e7a"
_CORNER = 22  # radius of the tile's corners, in percent of its side


@dataclass(frozen=True)
class IconSet:
    """One family of icons.

    Attributes:
        licence: Its licence, for the manifest.
        scale: Side of its drawing box as a share of the tile. Families leave different margins
            inside the box; with these the glyphs fill about 62% of the tile.
    """

    licence: str
    scale: float


ICON_SETS = {
    "material": IconSet("Material Design Icons, Apache-2.0", 0.74),
    "octicons": IconSet("GitHub Octicons, MIT", 0.64),
    "fontawesome": IconSet("Font Awesome Free, CC BY 4.0", 0.64),
    "simple": IconSet("Simple Icons, CC0 1.0 (the brands' own terms apply)", 0.62),
}


@dataclass(frozen=True)
class Icon:
    """An icon to draw: its key, file, class name and caption."""

    key: str
    path: Path
    set_name: str
    class_: str
    caption: str


@dataclass(frozen=True)
class IconSource:
    """Icons to draw, as a source of images.

    Attributes:
        size: Side of the images in pixels.
        sets: Families to draw, names in `ICON_SETS`.
        min_class: The first word of a name is its class if this many icons share it; the rest
            form the class "other".

    Raises:
        ValueError: An option is out of range; from its methods: a package is not installed.
    """

    size: int
    sets: tuple[str, ...] = ("material",)
    min_class: int = 10

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ValueError(f"size is {self.size}; icons need at least 8 pixels")
        _check_sets(self.sets)

    @property
    def title(self) -> str:
        """Where the icons come from, for people."""
        version = importlib.metadata.version("mkdocs-material")
        return f"icons of mkdocs-material {version}: {', '.join(self.sets)}"

    @property
    def licence(self) -> str:
        """The families' licences."""
        return "; ".join(ICON_SETS[name].licence for name in self.sets)

    def recipe(self) -> Mapping[str, Any]:
        """What decides the pixels: the packages' versions and the options."""
        _icon_folder()  # or a missing package would be reported without the remedy
        return {
            "builder": "icons",
            "mkdocs-material": importlib.metadata.version("mkdocs-material"),
            "resvg-py": importlib.metadata.version("resvg-py"),
            "drawing": _DRAWING,
            "size": self.size,
            "sets": list(self.sets),
            "min_class": self.min_class,
        }

    def items(self) -> Iterator[Item | Rejected]:
        """The icons, family by family, by path."""
        root = _icon_folder()
        for icon in find_icons(self.sets, self.min_class):
            place = [icon.set_name, icon.path.relative_to(root).as_posix()]
            yield Item(icon.key, place, icon.class_, icon.caption)

    def sample(self, item: Item) -> Sample | Rejected:
        """Draws one icon."""
        assert isinstance(item.place, list)
        assert item.class_ is not None
        name, path = item.place
        svg = (_icon_folder() / path).read_text(encoding="utf-8")
        try:
            png = draw_icon(svg, tile_colour(item.class_), self.size, ICON_SETS[name].scale)
        except ValueError as error:
            return Rejected(item.key, f"cannot be drawn: {error}")
        return Sample(item.key, png, "png", self.size, self.size, item.class_, item.caption)


def build_icons(
    out: Path | str,
    *,
    size: int,
    sets: Sequence[str] = ("material",),
    min_class: int = 10,
    shard_samples: int = 1000,
    validation: float = 0.0,
    overwrite: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Draws icons and writes them as a shard set: `build_set` of an `IconSource`."""
    return build_set(
        IconSource(size, tuple(sets), min_class),
        out,
        shard_samples=shard_samples,
        validation=validation,
        overwrite=overwrite,
        progress=progress,
    )


def find_icons(sets: Sequence[str], min_class: int) -> list[Icon]:
    """Lists the icons of some families, sorted by key, with their classes."""
    _check_sets(sets)
    root = _icon_folder()
    found = [
        (name, path, "-".join(path.relative_to(root / name).with_suffix("").parts))
        for name in sets
        for path in sorted((root / name).rglob("*.svg"))
    ]
    words = [path.stem.replace("-", " ") for _, path, _ in found]
    frequent = Counter(caption.split()[0] for caption in words)
    icons = []
    for (name, path, identity), caption in zip(found, words, strict=True):
        first = caption.split()[0]
        class_ = first if frequent[first] >= min_class else _OTHER
        key = f"{name}-{identity}".replace(".", "_")
        icons.append(Icon(key, path, name, class_, caption))
    return icons


def tile_colour(class_: str) -> str:
    """Returns the colour of a class's tiles as #rrggbb: a function of the name only.

    The hue and one of three tones come from a hash. The lightness is solved for so that the
    contrast with white is at least 3:1, whatever the hue (WCAG 2.2, criterion 1.4.11). The class
    of the remaining icons is slate, so that the largest class does not set the tone.
    """
    if class_ == _OTHER:
        return _SLATE
    digest = hashlib.sha256(class_.encode()).digest()
    hue = int.from_bytes(digest[:4], "big") / 2**32
    contrast = (3.1, 4.4, 6.5)[digest[4] % 3]
    low, high = 0.0, 1.0
    for _ in range(30):  # the contrast falls as the lightness grows
        middle = (low + high) / 2
        if 1.05 / (_luminance(hue, middle) + 0.05) >= contrast:
            low = middle
        else:
            high = middle
    rgb = colorsys.hls_to_rgb(hue, low, 0.85)
    return "#" + "".join(f"{int(channel * 255):02x}" for channel in rgb)


def draw_icon(svg: str, colour: str, size: int, scale: float) -> bytes:
    """Draws one glyph in white on a rounded tile on a white page.

    Args:
        svg: The icon's SVG document.
        colour: Colour of the tile, #rrggbb.
        size: Side of the image in pixels.
        scale: Side of the glyph's drawing box as a share of the tile.

    Returns:
        An RGB or RGBA PNG, opaque.

    Raises:
        ValueError: The SVG cannot be read or drawn.
    """
    import resvg_py  # part of an extra

    try:
        glyph = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"not well-formed SVG ({error})") from None
    if glyph.tag != f"{_SVG}svg" or "viewBox" not in glyph.attrib:
        raise ValueError("its root is not an <svg> with a viewBox")
    for element in glyph.iter():
        for name in ("fill", "stroke"):  # most have neither: they inherit the root's
            if element.get(name, "none") != "none":
                element.set(name, "#fff")
    box, margin = f"{100 * scale:g}", f"{50 * (1 - scale):g}"
    glyph.attrib |= {"x": margin, "y": margin, "width": box, "height": box}
    glyph.attrib |= {"fill": "#fff", "color": "#fff"}
    tile = ElementTree.Element(f"{_SVG}svg", viewBox="0 0 100 100")
    shape = {"width": "100", "height": "100", "rx": f"{_CORNER}", "fill": colour}
    ElementTree.SubElement(tile, f"{_SVG}rect", shape)
    tile.append(glyph)
    return resvg_py.svg_to_bytes(
        svg_string=ElementTree.tostring(tile, encoding="unicode"),
        background="#ffffff",
        width=size,
        height=size,
        skip_system_fonts=True,
    )


def _check_sets(sets: Sequence[str]) -> None:
    unknown = [name for name in sets if name not in ICON_SETS]
    if unknown or not sets or len(set(sets)) != len(sets):
        raise ValueError(
            f"icon sets are {', '.join(sets) or 'missing'}; choose, once each, from "
            + ", ".join(ICON_SETS)
        )


def _icon_folder() -> Path:
    if importlib.util.find_spec("resvg_py") is None:
        raise ValueError(f"drawing icons needs the package resvg-py; {_REMEDY}")
    package = importlib.util.find_spec("material")
    for location in (package.submodule_search_locations or ()) if package else ():
        folder = Path(location) / "templates" / ".icons"
        if folder.is_dir():
            return folder
    raise ValueError(f"the icons come with the package mkdocs-material; {_REMEDY}")


def _luminance(hue: float, lightness: float) -> float:
    """Relative luminance of a colour (WCAG 2.2)."""
    linear = [
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in colorsys.hls_to_rgb(hue, lightness, 0.85)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
