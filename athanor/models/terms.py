"""Terms of use that somebody has to accept before a model is fetched: asked once on a terminal, and remembered."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from athanor.base.downloads import cache_folder
from athanor.base.errors import AthanorError, ModelError
from athanor.base.files import read_json, write_json

VARIABLE = "ATHANOR_ACCEPT_TERMS"


@dataclass(frozen=True)
class Terms:
    """key: what the user writes to accept them. address: where they can be read."""

    key: str
    title: str
    address: str


def remember(terms: Terms) -> None:
    """From now on they count as accepted on this machine."""
    write_json(_file(), {**_remembered(), terms.key: terms.address})


def accepted(terms: Terms) -> bool:
    named = os.environ.get(VARIABLE, "").replace(",", " ").split()
    return terms.key in named or _remembered().get(terms.key) == terms.address


def require(terms: Terms, model: str) -> None:
    """Asks on a terminal. Raises ModelError when they are not accepted."""
    if accepted(terms):
        return
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{model} comes under the {terms.title}: {terms.address}", file=sys.stderr)
        print("Do you accept them? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            remember(terms)
            return
    raise ModelError(
        f"{model} is only fetched when its terms are accepted: {terms.title}, {terms.address}.",
        f"Read them; then run `athanor models --accept-terms {terms.key}` once, or set {VARIABLE}={terms.key}.",
    )


def _file() -> Path:
    return cache_folder() / "accepted-terms.json"


def _remembered() -> Mapping[str, object]:
    try:
        found = read_json(_file()) if _file().is_file() else {}
    except AthanorError:
        return {}  # damaged: it is asked again
    return found if isinstance(found, dict) else {}
