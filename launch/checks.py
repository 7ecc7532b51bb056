"""What is found to be right or wrong before anything is created, and what a person says to it."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Literal

from biomedlm_jax.entry import UserError, unanswered


@dataclasses.dataclass(frozen=True)
class Check:
    """One line. verdict: "ok", "note" (unknown, or worth knowing), or "wrong"."""

    name: str
    verdict: Literal["ok", "note", "wrong"]
    said: str


def tried(name: str, check: Callable[[], Check]) -> Check:
    """A check's own line, or what it raises as one that is wrong."""
    try:
        return check()
    except UserError as error:
        return Check(name, "wrong", str(error))
    except Exception as error:
        # How storage refuses: gcsfs has ValueErrors for that besides.
        if not (isinstance(error, (OSError, ValueError)) or unanswered(error)):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return Check(name, "wrong", f"{name}: it can not be looked at ({reason}); see that it is "
                     "there and that you may read it, and try again")  # fmt: skip


def table(checks: Sequence[Check]) -> str:
    width = max(len(check.name) for check in checks)
    marks = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}
    return "\n".join(f"{c.name:<{width}}  {marks[c.verdict]}  {c.said}" for c in checks)


def conclude(checks: Sequence[Check]) -> None:
    """Raises UserError where something is wrong, with all of it."""
    wrong = [check.said for check in checks if check.verdict == "wrong"]
    if wrong:
        count = "1 thing is" if len(wrong) == 1 else f"{len(wrong)} things are"
        listed = "".join(f"\n  * {said}" for said in wrong)
        raise UserError(f"{count} wrong, and nothing was created:{listed}")


def confirmed(question: str) -> bool:
    """Whether a person says yes; no where nobody is there."""
    try:
        return bool(re.fullmatch(r"y(es)?", input(f"{question} [y/N] ").strip(), re.IGNORECASE))
    except (EOFError, KeyboardInterrupt, RuntimeError):  # the last is that there is no input at all
        return False
