"""Text in Markdown: no character of a text is markup, of a table's cell or of HTML, nor does GitHub
make a link, a mention or mathematics of it."""

import re
from collections.abc import Iterable, Sequence


def escaped(text: str) -> str:
    """`text`, on one line and without control characters, as it is to be read."""
    text = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"(?i)(:(?=//)|(?<=www)\.)", r"\\\1", text)
    # It looks for addresses and names when the backslashes are gone already.
    text = text.replace("@", "@<!-- -->")
    return re.sub(r"^(\d*)([-+.)])(?=\s|$)", r"\1\\\2", text)  # or it begins a list


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Lines of a table of cells that are Markdown already.

    right: the columns that hold numbers.
    """
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
