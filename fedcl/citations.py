"""What a plug-in comes from: the papers that its docstring names under `References:`, one each, also as BibTeX.

A reference is one sentence each of authors' surnames, title, venue with year, and where there is one the arXiv number;
its further lines are indented deeper. Read from the source, so that listing imports nothing.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from fedcl import plugins

_FORM = re.compile(r"(?P<authors>.+?)\. (?P<title>.+)\. (?P<venue>.+) (?P<year>\d{4})\.(?: arXiv (?P<arxiv>[\d.]+)\.)?")


@dataclass(frozen=True)
class Reference:
    """A paper."""

    authors: tuple[str, ...]  # surnames, in order; the last may be "others"
    title: str
    venue: str
    year: int
    arxiv: str  # "" is none

    @property
    def short(self) -> str:
        """As in a text: Zenke et al. 2017."""
        more = {1: "", 2: f" & {self.authors[-1]}"}.get(len(self.authors), " et al.")
        return f"{self.authors[0]}{more} {self.year}"

    @property
    def key(self) -> str:
        """What a text cites it by: zenke2017continual."""
        words = re.findall(r"[a-z0-9]+", _plain(self.title))
        word = next((word for word in words if word not in ("a", "an", "the", "on")), "")
        return re.sub(r"[^a-z]", "", _plain(self.authors[0])) + str(self.year) + word

    @property
    def bibtex(self) -> str:
        """An entry with what is known here: surnames, title, venue, year, arXiv number."""
        fields = {"author": " and ".join(f"{{{name}}}" if " " in name else name for name in self.authors)}
        fields |= {"title": f"{{{self.title}}}", "howpublished": self.venue, "year": str(self.year)}
        fields |= {"eprint": self.arxiv, "archiveprefix": "arXiv"} if self.arxiv else {}
        lines = [f"  {name} = {{{value}}}" for name, value in fields.items()]
        return f"@misc{{{self.key},\n" + ",\n".join(lines) + "\n}"


def of(kind: str, name: str) -> tuple[Reference, ...]:
    """The papers that one of fedcl's own plug-ins names; none for somebody's own, and where there is none.

    Raises:
        ValueError: a reference has another form.
    """
    if "." in name or ":" in name:
        return ()
    section = plugins.docstring(kind, name).partition("\nReferences:\n")[2]
    # A line of four spaces begins one, deeper ones go on with it.
    texts = [" ".join(text.split()) for text in re.split(r"^    (?! )", section, flags=re.M) if text.strip()]
    return tuple(map(_parse, texts))


def _parse(text: str) -> Reference:
    found = _FORM.fullmatch(text)
    if not found:
        raise ValueError(f"reference {text!r}: must be Surnames. Title. Venue year. arXiv number.")
    authors = tuple(found["authors"].split(", "))
    return Reference(authors, found["title"], found["venue"], int(found["year"]), found["arxiv"] or "")


def _plain(text: str) -> str:
    """Lower case, without accents."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
