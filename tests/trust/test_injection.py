"""Captions, labels and names made to be obeyed by whatever opens the result: pages, pictures, terminals and spreadsheets."""

from __future__ import annotations

import csv
import io
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

import probe
from probe.quoting import spreadsheet_frame, terminal_text
from probe.reports import Report, make_table
from probe.sweep.exports import export_table
from probe.sweep.plan import SweepPlan
from probe.sweep.store import Store
from tests.records import make_record
from tests.trust.conftest import MARKUP

LATEX = (
    r"\input{/etc/passwd}", r"\write18{id}", r"$\frac{1}{", r"$x^2$", r"$\mathbb{X}", r"\end{document}",
    "50% of $5 & #1_a^{b}~", "\\", r"$\includegraphics{a}$", "$" * 50,
)  # fmt: skip
TERMINAL = (
    "\x1b[2J", "\x1b]0;title\x07", "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\", "\x1b[31mred", "\x9b31m", "a\rb", "a\x08b",
    "\x00", "\x07", "\u202eslanigiro", "\u2066a\u2069", "\ud800", "\u2028", "[bold]no[/bold]", "[link=http://evil]x[/link]",
    "\x1bP+q\x1b\\", "\x7f",
)  # fmt: skip
FORMULAS = (
    "=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|'/C calc'!A0", '=HYPERLINK("http://evil","x")', "＝1+1",
    "－2", "＋2", "＠a", "-", "=", "+49 170", '"=1"',
)  # fmt: skip
ALLOWED_TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "div", "table", "thead", "tbody", "tr", "th",
    "td", "b", "small", "ul", "li", "i", "article", "svg", "path", "circle", "image", "details", "summary", "pre", "caption",
}  # fmt: skip


class Page(HTMLParser):
    """What is wrong in a page: tags, attributes and addresses that the package never writes; and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.wrong: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ALLOWED_TAGS:
            self.wrong.append(f"<{tag}>")
        for name, value in attrs:
            away = (
                re.search(r"javascript:|//", value or "")
                and name not in ("aria-label",)
                and "http://www.w3.org" not in value
            )
            if (
                name.startswith("on")
                or (away and not (value or "").startswith("data:image/"))
                or name in ("srcdoc", "src")
            ):
                self.wrong.append(f"{tag} {name}={value!r:.60}")

    def handle_data(self, data):
        self.words.append(data)

    def handle_comment(self, data):
        self.wrong.append(f"<!--{data}")

    def handle_pi(self, data):
        self.wrong.append(f"<?{data}")


@pytest.mark.promises("R29")
def test_records_shown_in_notebooks(line):
    notebooks = line("R29", target="0 injections", least=50)
    for text in (*MARKUP, *LATEX, *TERMINAL, *FORMULAS):
        record = make_record(text=f"a {text} b")
        record = replace(record, source=replace(record.source, ablation=text), history=(text,))
        page = Page(record._repr_html_())
        shown = (text.split() or [""])[0][:20]
        said = "".join(page.words)
        # HTML itself has no null characters, and reads a carriage return as a line break.
        kept = shown in said or "\x00" in text or "\r" in text
        notebooks.trial(not page.wrong and kept, what=f"{text!r}: {page.wrong}")
    notebooks.settle()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.promises("R29")
def test_pages_of_evaluations(line, evaluated):
    """Pictures whose captions, masks and file names are markup."""
    pages = line("R29", target="0 injections", least=9)
    out, _ = evaluated
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    said = "".join(page.words)
    for number in range(9):
        pages.trial(f"a ball {number} " in said and not page.wrong, what=f"{MARKUP[number]!r}: {page.wrong}")
    pages.settle()


def figures(text: str, picture: Image.Image):
    """Every figure into which words of a record go."""
    record = make_record(text=f"a red {text} and a blue square")
    yield probe.plots.phrases(record, [f"red {text}", "blue square"], picture)[0].get_figure(root=True)
    segmented = probe.attend_and_segment(record, picture, phrases=[f"red {text}"], refiner="threshold")
    yield probe.plots.answer(segmented, picture).get_figure(root=True)
    axes = probe.plots.overlay(record[f"red {text}"], picture)
    yield (axes[0] if isinstance(axes, (list, tuple, np.ndarray)) else axes).get_figure(root=True)


def chunks(png: bytes) -> set[str]:
    found, place = set(), 8
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        found.add(kind.decode())
        place += 12 + length
    return found


def opened(pdf: bytes) -> bytes:
    """The PDF with its streams as they are read."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    parts = [pdf]
    for one in streams:
        try:
            parts.append(zlib.decompress(one))
        except zlib.error:
            continue
    return b"\n".join(parts)


ACTS = rb"/(?:JavaScript|JS|URI|Launch|OpenAction|AA|EmbeddedFile|SubmitForm|GoToR|Annots \[ *\d)\b"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.promises("R29")
def test_figures(line, full, tmp_path):
    """PDF, PNG and SVG in which words are words: no action, no address, no metadata, no formula."""
    strings = (
        (*MARKUP, *LATEX, *TERMINAL) if full else (f"{MARKUP[0]} {LATEX[2]}", f"{MARKUP[3]} {LATEX[0]} {TERMINAL[2]}")
    )
    drawn = line("R29", target="0 injections", least=len(strings) * 3)
    picture = Image.new("RGB", (32, 32), "grey")
    for text in strings:
        words = terminal_text(text).strip()  # no font draws what a terminal obeys
        for figure in figures(words, picture):
            pdf, png = probe.plots.save_figure(figure, tmp_path / "figure")
            figure.savefig(tmp_path / "figure.svg")
            svg = ElementTree.parse(tmp_path / "figure.svg")
            tags = {one.tag.rpartition("}")[2] for one in svg.iter()}
            away = [
                value for one in svg.iter() for name, value in one.attrib.items() if name.endswith("href") and value[:1] not in "#d"
            ]  # fmt: skip
            formulas = [
                one.get_text() for one in figure.findobj(Text) if "$" in one.get_text() and one.get_parse_math()
            ]
            wrong = {
                "pdf": re.findall(ACTS, opened(pdf.read_bytes())),
                "png": chunks(png.read_bytes()) - {"IHDR", "pHYs", "IDAT", "IEND", "PLTE"},
                "svg": (tags & {"script", "foreignObject", "a", "iframe"}) or away,
                "formula": formulas,
                "LaTeX": plt.rcParams["text.usetex"],
            }
            drawn.trial(not any(wrong.values()), what=f"{text!r}: {wrong}")
            plt.close(figure)
    drawn.settle()


def obeyed(text: str) -> bool:
    """Whether a terminal would do something else than show it."""
    return any(
        letter != "\n" and (ord(letter) < 32 or 127 <= ord(letter) < 160 or letter in "\u202e\u2066\u2069\u2028")
        for letter in text
    )


@pytest.mark.promises("R29")
def test_terminals(line, shell, capsys, tmp_path):
    """Words of others in tables, lines and complaints."""
    terminal = line("R29", target="0 injections", least=100)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for text in (*TERMINAL, *LATEX[:2], *MARKUP[:2]):
        table = make_table(f"title {text}", f"column {text}", "b")
        table.add_row(f"cell {text}", "1")
        capsys.readouterr()
        Report({"text": text}, [table, f"line {text}"]).show()
        printed = capsys.readouterr().out
        terminal.trial(
            not obeyed(printed) and "cell" in printed and "line" in printed, what=f"shown {text!r}: {printed!r:.200}"
        )
        for argv in (
            ["record", f"{text}.png", "Describe."],
            ["score", "--data", f"nowhere/{text}"],
            ["record", tmp_path / "a.png", "x", "--model", f"nowhere/a/{text}"],
            ["sweep", "status", f"nowhere{text}"],
            [f"command{text}"],
            ["score", f"--option{text}"],
            ["score", "--limit", f"{text}"],
        ):
            code, out, noise = shell(*argv)
            fine = code == 2 and not out and noise.count("\n") == 1 and not obeyed(noise)
            terminal.trial(fine, what=f"{argv}: {code} {noise!r:.300}")
    terminal.settle()


def formula(cell: str) -> bool:
    """Whether a spreadsheet would compute it: a number alone is a number."""
    if re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", cell):
        return False
    return cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))


@pytest.mark.promises("R29")
def test_spreadsheets(line, tmp_path):
    """A sweep over examples whose names, captions and reasons are formulas; numbers stay numbers and parquet stays as it was."""
    cells = line("R29", target="0 injections", least=100)
    plan = SweepPlan(limit=len(FORMULAS), effects="log_probability")
    store = Store.create(tmp_path / "store", plan, {"model": "m"}, columns=plan.columns(), ablations=1)
    numbers = {"end": 5, "layer": 0, "head": 1, "resumed": False, "log_probability_change": 1e-9}
    row = dict.fromkeys(plan.columns(), "") | numbers | {"kind": "head", "how": "zero"}
    texts = [dict.fromkeys(("example", "image", "phrase", "error"), text) for text in FORMULAS]
    rows = [
        row | text | {"position": number, "start": -number, "log_probability": -0.5 - number}
        for number, text in enumerate(texts)
    ]
    frame = pd.DataFrame(rows)[plan.columns()]
    store.commit(0, frame, key="k", examples=len(rows))
    export_table(store, tmp_path / "table.csv", partial=True)
    export_table(store, tmp_path / "table.parquet", partial=True)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    for given, read in zip(rows, found, strict=True):
        for name in ("example", "image", "phrase", "error"):
            same = read[name].removeprefix("'") == given[name]
            cells.trial(not formula(read[name]) and same, silent=True, what=f"{name} {given[name]!r}: {read[name]!r}")
        for name in ("start", "log_probability", "log_probability_change"):
            cells.trial(float(read[name]) == float(given[name]), silent=True, what=f"{name}: {read[name]!r}")
    assert [formula(one) for one in ("=1", "a=1", "-1.5", "1e-3", "-a")] == [True, False, False, False, True]
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "table.parquet")[["example", "start"]], frame[["example", "start"]]
    )
    again = pd.read_csv(io.StringIO(spreadsheet_frame(frame).to_csv(index=False)), keep_default_na=False)
    assert not any(formula(str(cell)) for cell in again["example"])
    cells.settle()
