"""NCBI's inline markup as plain, readable text.

Citations (`pubmed.py`) and articles (`jats.py`) share it: italics and the like leave no trace,
superscripts and MathML are spelled so that their meaning stays ("10^6", not "106"), and the line
breaks and indentation of the XML become single spaces. Nothing outside ASCII is changed.
"""

import dataclasses
import html
import re
from collections.abc import Collection
from typing import Any

import lxml.etree as etree

# For lxml's parsers: nothing is fetched, no entity is expanded, and libxml2's limits on depth and
# size stay in force, so that a hostile file costs an error and no more.
SAFELY: dict[str, Any] = {
    "resolve_entities": False,
    "no_network": True,
    "load_dtd": False,
    "huge_tree": False,
    "remove_comments": True,
    "remove_pis": True,
}

_SPACE = re.compile(r"[ \t\r\n]+")
_INVISIBLE = dict.fromkeys(range(0x2061, 0x2065))  # MathML's function application, times, ...
_SPACED = set("=<>+\u00b1\u00d7\u2248\u2260\u2264\u2265")


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Something that was set aside: where it is in its file, and what is wrong with it."""

    position: str
    reason: str


class MarkupError(ValueError):
    """An element that can not be turned into text or lacks what it must have."""


def tag(element: Any) -> str:
    """The element's name without its namespace."""
    return etree.QName(element).localname


def plain(element: Any, drop: Collection[str] = ()) -> str:
    """The text of an element, with what is inside `drop` left out.

    Superscripts that are nothing but a reference to the bibliography are left out as well: their
    digits would run into the word before.

    Raises:
      MarkupError: an entity that neither XML nor HTML defines.
    """
    pieces: list[str] = []
    _collect(element, pieces, drop)
    return collapse("".join(pieces))


def collapse(text: str) -> str:
    """Runs of XML white space as one space, none at the ends. Other kinds of space stay."""
    if "\n" in text or "  " in text or "\t" in text or "\r" in text:  # few have any
        text = _SPACE.sub(" ", text)
    return text.strip(" ")


def _collect(element: Any, pieces: list[str], drop: Collection[str]) -> None:
    pieces.append(element.text or "")
    for child in element:
        if child.tag is etree.Entity:
            pieces.append(_entity(child.text))
        elif (name := tag(child)) == "math":
            pieces.append(_math(child))
        elif name == "sup":
            if not _is_citation(child):
                pieces.append(_superscript(pieces, plain(child, drop)))
        elif name in ("break", "disp-formula"):
            pieces.append(" ")
            _collect(child, pieces, drop)
            pieces.append(" ")
        elif name not in drop and not (name == "xref" and _is_raised_citation(child)):
            _collect(child, pieces, drop)
        pieces.append(child.tail or "")


def _entity(reference: str) -> str:
    text = html.unescape(reference)
    if text == reference:
        raise MarkupError(f"undefined entity {reference}")
    return text


def _superscript(before: list[str], text: str) -> str:
    """A caret where the power would otherwise be read as more digits: 10^6, but m2 and Ca2+."""
    last = next((piece[-1] for piece in reversed(before) if piece), "")
    power = re.match(r"[-+\u2212\u2013]?\d", text) and (last.isdigit() or last == ")")
    return "^" + text if power else text


def _is_citation(sup: Any) -> bool:
    return any(x.get("ref-type") == "bibr" for x in sup.iter("{*}xref"))


def _is_raised_citation(xref: Any) -> bool:
    return xref.get("ref-type") == "bibr" and len(xref) > 0 and tag(xref[0]) == "sup"


def _math(element: Any) -> str:
    """MathML (presentation markup) on one line: fractions with a slash, powers with a caret."""
    name = tag(element)
    if name.startswith("annotation"):
        return ""
    if name == "mspace":
        return " "
    if not len(element):
        text = collapse(element.text or "").translate(_INVISIBLE)
        return f" {text} " if name == "mo" and text in _SPACED else text
    parts = [_entity(e.text) if e.tag is etree.Entity else _math(e) for e in element]
    match name, len(parts):
        case "mfrac", 2:
            return f"{_grouped(parts[0])}/{_grouped(parts[1])}"
        case "msup", 2:
            return f"{parts[0]}^{_grouped(parts[1])}"
        case "msub", 2:
            return f"{parts[0]}_{_grouped(parts[1])}"
        case "msubsup", 3:
            return f"{parts[0]}_{_grouped(parts[1])}^{_grouped(parts[2])}"
        case "msqrt", _:
            return f"sqrt({collapse(''.join(parts))})"
        case "mfenced", _:
            return f"{element.get('open', '(')}{', '.join(parts)}{element.get('close', ')')}"
        case (("mtable" | "mtr"), _):
            return " ".join(parts)
    return "".join(parts)


def _grouped(text: str) -> str:
    text = collapse(text)
    return text if re.fullmatch(r"\w*", text) else f"({text})"
