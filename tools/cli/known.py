"""Hints where a name is likely mistyped: what is not ranked is allowed, and has no effect yet."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from schemas.values import canonical_role

if TYPE_CHECKING:
    from schemas import ModelProfileScored


def hint(rankings: "Iterable[ModelProfileScored]", role: str | None, models: Iterable[str]) -> None:
    """Says on standard error which role and models (provider/model) no ranking has."""
    known = {r.role: {f"{e.provider}/{e.model}" for e in r.entries} for r in rankings}
    if not known:
        return
    if role is not None and canonical_role(role) not in known:
        print(
            f"roster: note: no ranking has the role {role}; there are {', '.join(sorted(known))}",
            file=sys.stderr,
        )
    ranked = {name for names in known.values() for name in names}
    for name in models:
        if name not in ranked:
            near = get_close_matches(name, sorted(ranked), 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            print(f"roster: note: no ranking has the model {name}{meant}", file=sys.stderr)
