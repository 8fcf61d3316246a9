import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.ablate.report.drawing import Picture
from eval.ablate.report.pages import (
    Bullets,
    Fold,
    Gallery,
    MarkdownPicture,
    Paragraph,
    Section,
    Strong,
    Table,
    html_page,
    markdown,
    markdown_page,
    pictures_of,
)

HOSTILE = "<script>x()</script>\n# a | b `c` ![d](http://e) [f][g] **h** _i_ &amp; \u202e $j$ @k"


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def sections(text: str) -> list[Section]:
    """Every kind of block with this text in every place."""
    blocks = (
        Paragraph(text),
        Paragraph((Strong(text), text), "note"),
        Bullets((text, (Strong(text), text))),
        Table((text, text), ((text, Strong(text, "bad")),)),
        Picture("plot", text, text, '<div class="plot"><svg></svg></div>', b"png"),
        Gallery(((text, b"png"),)),
        MarkdownPicture("sheet", text, text, b"sheet"),
        Fold(text, (Paragraph(text),)),
    )
    return [Section(text, blocks)]


def test_text_is_text_in_html() -> None:
    plain = Page(html_page("Study", "plain", sections("plain")))
    hostile = Page(html_page("Study", HOSTILE, sections(HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert hostile.text.count(HOSTILE) == plain.text.count("plain")
    alts = [attrs["alt"] for tag, attrs in hostile.tags if tag == "img"]
    assert alts == [f"Samples of {HOSTILE}"]


def test_the_page_needs_nothing_and_runs_nothing() -> None:
    page = Page(html_page("Study", "name", sections("text")))
    metas = [attrs for tag, attrs in page.tags if tag == "meta"]
    (policy,) = [m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert all((source or "").startswith("data:image/png;base64,") for source in sources)


def unescaped(text: str, character: str) -> int:
    """How often a character occurs without a backslash before it (two are one themselves)."""
    return len(re.findall(character, without_escapes(outside_summaries(text))))


def outside_summaries(text: str) -> str:
    """Summaries are HTML, in which what Markdown heeds means nothing."""
    return re.sub(r"<summary>[^<]*</summary>", "<summary>", text)


def without_escapes(text: str) -> str:
    return re.sub(r"\\.|&#\d+;", "", text)


def test_text_is_text_in_markdown() -> None:
    source = markdown_page("name", sections(HOSTILE))
    plain = markdown_page("name", sections("plain"))
    assert len(source.splitlines()) == len(plain.splitlines())
    for mark in (r"\|", r"\*", "`", r"\$", "!", "#", "<", r"\["):
        assert unescaped(source, mark) == unescaped(plain, mark), mark
    assert "http://" not in outside_summaries(source)
    assert "@" not in outside_summaries(source)
    assert "\u202e" not in source


@given(st.text(max_size=60))
@example("0.")
def test_markdown_of_any_text_is_one_harmless_line(text: str) -> None:
    line = markdown(text)
    assert len(f"x{line}x".splitlines()) == 1
    assert not re.search(r"[<>]", line)
    bare = without_escapes(line)
    assert not set("`*#|~$!") & set(bare)
    assert not re.search(r"\][(\[:]", bare) or "[" not in bare
    assert not re.match(r"([-+]|\d+[.)])(\s|$)", line)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shifted_32", "shifted_32"),
        ("_x_", r"\_x\_"),
        ("[0.1, -2e-05]", "[0.1, -2e-05]"),
        ("(t [-1, 2], bootstrap [-3, 4])", "(t [-1, 2], bootstrap [-3, 4])"),
        ("[1, 2](x)", r"\[1, 2](x)"),
        ("[1, 2]: x", r"\[1, 2]: x"),
        ("[x]", r"\[x]"),
        ("-0.5", "-0.5"),
        ("- x", r"\- x"),
        ("1. x", r"1\. x"),
        ("1.5", "1.5"),
        ("===", r"\==="),
        ("a\nb", "a b"),
        ("a<b>&c", "a&lt;b&gt;&amp;c"),
        ("www.a.b", "www&#46;a.b"),
        ("\\", "\\\\"),
    ],
)
def test_markdown_escapes_what_means_something(text: str, expected: str) -> None:
    assert markdown(text) == expected


def test_tables_in_markdown() -> None:
    table = Table(
        ("a", "b", "c"), (("x", "1", Strong("2")), ("y", ("p", Strong("q")), "")), words=2
    )
    source = markdown_page("name", [Section("T", (table,))])
    assert source.splitlines()[4:] == [
        "| a | b | c |",
        "| :-- | :-- | --: |",
        "| x | 1 | **2** |",
        "| y | p**q** |  |",
    ]


def test_numbers_are_to_the_right_of_words_in_html() -> None:
    table = Table(("a", "b"), (("x", "1"),), words=1)
    page = Page(html_page("Study", "name", [Section("T", (table,))]))
    classes = [attrs.get("class") for tag, attrs in page.tags if tag in ("th", "td")]
    assert classes == ["text", None, "text", None]


def test_markdown_pictures_are_files() -> None:
    parts = [
        *sections("text"),
        Section("more", (Fold("f", (MarkdownPicture("in", "", "", b"i"),)),)),
    ]
    assert pictures_of(parts) == {"plot.png": b"png", "sheet.png": b"sheet", "in.png": b"i"}
    source = markdown_page("name", parts)
    assert re.findall(r"\]\((.*?)\)", source) == [
        "report_files/plot.png",
        "report_files/sheet.png",
        "report_files/in.png",
    ]


def test_a_fold_of_page_pictures_leaves_no_trace_in_markdown() -> None:
    parts = [Section("s", (Fold("f", (Gallery((("x", b"y"),)),)),))]
    assert markdown_page("name", parts) == "# name\n\n## s\n"


def test_spaces_between_parts_are_kept() -> None:
    line = (Strong("a"), " b: ", Strong("c"), "d")
    assert (
        markdown_page("n", [Section("s", (Paragraph(line),))]).splitlines()[-1] == "**a** b: **c**d"
    )
