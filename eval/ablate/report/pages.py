"""A report as blocks of plain text, written as one HTML page and as Markdown with pictures.

All text is escaped when it is written, so a name or an error message can be nothing but text.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from eval.ablate.report.drawing import PALETTE, Picture
from eval.page_style import STYLE

FILES = "report_files"
"""The folder of the pictures, beside the Markdown."""

_WIDE = 7  # columns, above which a table is set smaller
_STYLE = (
    STYLE
    + PALETTE
    + """
.plot { margin: 8px auto 0; } .caption { margin: 2px 0 22px; }
b.good { color: var(--three); } b.bad { color: var(--two); } td.text, th.text { text-align: left; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 16ch; }
ul { padding-left: 1.2em; margin: 8px 0 14px; } li { margin: 0 0 8px; max-width: 88ch; }
p { max-width: 88ch; } .fold { border: 0; padding: 0; margin-top: 12px; background: none; }
.wide table { font-size: 0.82rem; } .wide th, .wide td { padding: 4px 6px; }
.grids figcaption { overflow-wrap: anywhere; }
"""
)


@dataclass(frozen=True)
class Strong:
    """Text that stands out, as good or bad news or as neither."""

    text: str
    tone: Literal["", "good", "bad"] = ""


Inline = str | Strong
Line = Inline | tuple[Inline, ...]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; as a `note` it is set smaller, as a `warning` it stands out."""

    line: Line
    kind: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list of lines."""

    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """A table; its first `words` columns hold text, the others numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[Line, ...], ...]
    words: int = 1


@dataclass(frozen=True)
class Gallery:
    """Pictures with captions, for the page alone."""

    pictures: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class MarkdownPicture:
    """A picture for the Markdown alone, where the page has better ones."""

    name: str
    alt: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Fold:
    """Blocks that are hidden until asked for."""

    title: str
    blocks: "tuple[Block, ...]"


Block = Paragraph | Bullets | Table | Picture | Gallery | MarkdownPicture | Fold


@dataclass(frozen=True)
class Section:
    """A titled part of the report."""

    title: str
    blocks: tuple[Block, ...]


def html_page(kind: str, title: str, sections: Sequence[Section]) -> str:
    """One page that needs nothing else: no scripts, nothing fetched, pictures inside."""
    parts = "".join(
        f"<section><h2>{escape(one.title)}</h2>{''.join(map(_html, one.blocks))}</section>"
        for one in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # A second lock: even if something hostile got through, nothing may run or be fetched.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)} – {escape(kind)}</title><style>{_STYLE}</style></head><body><main>"
        f'<header><p class="over">{escape(kind)}</p><h1>{escape(title)}</h1></header>{parts}'
        "</main></body></html>\n"
    )


def markdown_page(title: str, sections: Sequence[Section]) -> str:
    """GitHub's Markdown; pictures are in the folder `FILES` beside it."""
    parts = [f"# {markdown(title)}"]
    for section in sections:
        parts.append(f"## {markdown(section.title)}")
        parts += [text for block in section.blocks if (text := _markdown(block))]
    return "\n\n".join(parts) + "\n"


def pictures_of(sections: Sequence[Section]) -> dict[str, bytes]:
    """The files that the Markdown shows, by name."""

    def within(blocks: Sequence[Block]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for block in blocks:
            if isinstance(block, Fold):
                found |= within(block.blocks)
            if isinstance(block, (Picture, MarkdownPicture)):
                found[f"{block.name}.png"] = block.png
        return found

    return within([block for section in sections for block in section.blocks])


def markdown(text: str) -> str:
    """Text such that Markdown shows it as it is, on one line.

    Underscores within words stay bare: they mean nothing there, and names are easier to read so.
    """
    text = _one_line(text)
    text = re.sub(r"([\\`*#|~$!])", r"\\\1", text)
    # Brackets make links, but not around a pair of numbers alone.
    text = re.sub(r"\[(?!-?[\d.,e+-]+, -?[\d.,e+-]+\](?:[^(\[:]|$))", r"\[", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Addresses and mentions would become links.
    text = text.replace("://", ":&#47;&#47;").replace("@", "&#64;")
    text = re.sub(r"\b(www)\.", r"\1&#46;", text, flags=re.IGNORECASE)
    # What would start a list or underline a heading at the beginning of a line.
    return re.sub(r"^(\d*)([-+.)](?:\s|$)|[-+=]+$)", r"\1\\\2", text)


def _one_line(text: str) -> str:
    """Without line breaks and other characters that are not for showing."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _html(block: Block) -> str:
    match block:
        case Paragraph(line, kind):
            css = f' class="{escape(kind)}"' if kind else ""
            return f"<p{css}>{_html_line(line)}</p>"
        case Bullets(lines):
            return f"<ul>{''.join(f'<li>{_html_line(line)}</li>' for line in lines)}</ul>"
        case Table():
            return _html_table(block)
        case Picture():
            caption = f'<p class="note caption">{escape(block.caption)}</p>'
            return f'<div role="img" aria-label="{escape(block.alt)}">{block.svg}</div>{caption}'
        case Gallery(pictures):
            return f'<div class="grids">{"".join(_html_figure(*one) for one in pictures)}</div>'
        case Fold(title, blocks):
            inside = "".join(map(_html, blocks))
            return f'<details class="fold"><summary>{escape(title)}</summary>{inside}</details>'
    return ""


def _html_figure(caption: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="Samples of {escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _html_line(line: Line) -> str:
    parts = line if isinstance(line, tuple) else (line,)
    return "".join(_html_strong(one) if isinstance(one, Strong) else escape(one) for one in parts)


def _html_strong(part: Strong) -> str:
    css = f' class="{part.tone}"' if part.tone else ""
    return f"<b{css}>{escape(part.text)}</b>"


def _html_table(table: Table) -> str:
    def css(column: int, line: Line = "") -> str:
        long = " long" if len(_html_line(line)) > 60 else ""
        return f' class="text{long}"' if column < table.words else ""

    head = "".join(f'<th scope="col"{css(i)}>{escape(c)}</th>' for i, c in enumerate(table.head))
    lines = [
        "".join(f"<td{css(i, cell)}>{_html_line(cell)}</td>" for i, cell in enumerate(row))
        for row in table.rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in [head, *lines])
    wide = " wide" if len(table.head) > _WIDE else ""
    return f'<div class="scroll{wide}"><table>{body}</table></div>'


def _markdown(block: Block) -> str:
    match block:
        case Paragraph(line):
            return _markdown_line(line)
        case Bullets(lines):
            return "\n".join(f"- {_markdown_line(line)}" for line in lines)
        case Table(head, rows, words):
            rule = [":--" if i < words else "--:" for i in range(len(head))]
            cells = [[markdown(cell) for cell in head], rule]
            cells += [[_markdown_line(cell) for cell in row] for row in rows]
            return "\n".join(f"| {' | '.join(row)} |" for row in cells)
        case Picture() | MarkdownPicture():
            alt = markdown(block.alt)
            return f"![{alt}]({FILES}/{block.name}.png)\n\n{markdown(block.caption)}".strip()
        case Fold(title, blocks):
            inside = "\n\n".join(text for one in blocks if (text := _markdown(one)))
            summary = f"<summary>{escape(_one_line(title))}</summary>"
            return f"<details>{summary}\n\n{inside}\n\n</details>" if inside else ""
    return ""


def _markdown_line(line: Line) -> str:
    parts = line if isinstance(line, tuple) else (line,)
    # Spaces at the ends of parts separate them, and bold text may not begin or end with one.
    return "".join(_markdown_part(one) for one in parts).strip()


def _markdown_part(part: Inline) -> str:
    if isinstance(part, Strong):
        return f"**{markdown(part.text)}**" if part.text.strip() else ""
    before, after = (" " if end == " " else "" for end in (part[:1], part[-1:]))
    return f"{before}{markdown(part)}{after}" if part.strip() else part
