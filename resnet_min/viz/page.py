"""The report page: one HTML file with everything in it, read without a network and without scripts."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from ..errors import UserError
from ..files import printable, write_whole

TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
Rows = Sequence[Sequence[str]]  # the first is the head

# What there is to see, in the order of the page: heading, what is drawn below it -> what one sees there.
SECTIONS: dict[str, dict[str, str]] = {
    "Training": {
        "curves": "Loss, and what the task is judged by, after each epoch.",
        "steps": "The training loss of every step, and its running mean.",
    },
    "Results": {
        "comparison": "What the networks have in common stands below the title; the bars are what differs.",
        "confusion": "Which classes are taken for which.",
        "roc": "Each class against the rest, at every threshold.",
        "corruptions": "Accuracy and calibration on images that are corrupted more and more.",
        "reliability": "Whether it is right as often as it says.",
    },
    "What it gets wrong": {"worst": "The worst of all."},
    "Inside": {
        "filters": "The filters of the first convolution.",
        "features": "What the stem and every stage make of one image.",
        "top": "The images that excite channels of the last stage most; the frame is what a channel sees.",
        "reconstruct": "The reverse ResNet: the maps of every depth projected back to the pixels.",
        "gradcam": "Grad-CAM: which pixels speak for what the network says.",
    },
}

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; overflow-wrap: anywhere; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin-bottom: .3rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; }
.side { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } caption { text-align: left; padding: .3rem 0; }
.facts td { text-align: left; overflow-wrap: anywhere; } .facts td:first-child { white-space: nowrap; opacity: .75; }
.side .wide :is(th, td) { padding-inline: .35rem; } .side .wide :is(th, td):first-child { padding-left: 0; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; opacity: .8; }
img { display: block; max-width: 100%; max-height: 52rem; background: white; border-radius: 6px; }
@media (max-width: 600px) {
  body { padding: .6rem; } th, td { padding: .2rem .4rem; } img { max-width: none; max-height: none; width: 34rem; }
}
@media print {
  :root { color-scheme: light; } nav { display: none; } body { max-width: none; }
  h2 { break-after: avoid; } figure, tr { break-inside: avoid; }
}
"""


@dataclass
class Network:
    """One network of a page."""

    name: str
    facts: dict[str, str]  # what was trained, and how: name -> value
    pictures: dict[str, Path] = field(default_factory=dict)  # what is drawn (see SECTIONS) -> its file
    tables: dict[str, Rows] = field(default_factory=dict)  # caption -> rows


def write(path: str | Path, title: str, networks: Sequence[Network], shared: Mapping[str, Path], summary: Rows) -> None:
    """Write the page. shared: pictures of all networks at once; summary: a row for each network.

    Raises UserError for a picture that a page cannot hold.
    """
    known = {what for section in SECTIONS.values() for what in section}
    others = {what: "" for network in networks for what in network.pictures if what not in known}
    body: list[str] = [f"<h1>{_text(title)}</h1>", "<nav>{}</nav>"]
    body += ['<h2 id="summary">Summary</h2>', _table(summary)]
    body += [_side([_facts(network, len(networks) > 1) for network in networks])]
    links = ["Summary"]
    for heading, seen in (*SECTIONS.items(), ("More", others)):
        parts = []
        for what, said in seen.items():
            parts += [_figure(shared[what], said)] if what in shared else []
            made = [(network.name, network.pictures[what]) for network in networks if what in network.pictures]
            named = len(networks) > 1
            parts += [_side([_figure(file, said, name if named else "") for name, file in made])] if made else []
        if heading == "Results":
            tables = [
                _table(rows, caption + (f": {network.name}" if len(networks) > 1 else ""))
                for network in networks
                for caption, rows in network.tables.items()
            ]
            parts += [_side(tables)] if tables else []
        if parts:
            links.append(heading)
            body += [f'<h2 id="{_anchor(heading)}">{_text(heading)}</h2>', *parts]
    body[1] = body[1].format("".join(f'<a href="#{_anchor(name)}">{_text(name)}</a>' for name in links))
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    write_whole(path, head + "\n".join(body) + "\n</body>\n</html>\n")


def _text(value: str) -> str:
    return escape(printable(value))


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _side(parts: Iterable[str]) -> str:
    return f'<div class="side">{"".join(parts)}</div>'


def _table(rows: Rows, caption: str = "") -> str:
    head, *body = rows
    lines = ["".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)]
    lines += ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in body]
    said = f"<caption>{_text(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{said}{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _facts(network: Network, named: bool) -> str:
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in network.facts.items())
    heading = f"<h3>{_text(network.name)}</h3>" if named else ""
    return f'<div>{heading}<table class="facts">{rows}</table></div>'


def _figure(file: Path, said: str, name: str = "") -> str:
    kind = TYPES.get(file.suffix)
    if kind is None:
        raise UserError(f"a page holds pictures in png and svg, not {file.name}: take another --format")
    data = base64.b64encode(file.read_bytes()).decode()
    caption = _text(f"{name}: {said}" if name and said else name or said or file.stem)
    picture = f'<div class="wide"><img src="data:{kind};base64,{data}" alt="{caption}"></div>'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
