"""Where a pinned wheel lies on the user's package index, so that a broken download of it can go on from where it broke.

pip starts an interrupted file from nothing. It stays the client for every index that this page cannot read: folders
of wheels, own certificates, logins other than in the address.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from athanor.base.transfers import TransferError, read_page

_DEFAULT = "https://pypi.org/simple"
_FOR_PIP_ALONE = {"no-index", "find-links", "client-cert", "trusted-host", "proxy", "keyring-provider"}
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


def find_wheel(name: str, filename: str) -> tuple[str, Mapping[str, str]] | None:
    """The wheel's address and the headers to fetch it with; None where only pip can know. (PEP 503 and 691.)"""
    for index in _indexes(_pip_settings()):
        address, headers = _login(index)
        page = f"{address.rstrip('/')}/{re.sub(r'[-_.]+', '-', name).lower()}/"
        try:
            kind, text = read_page(page, {**headers, "Accept": _ACCEPT})
            links = _json_links(text) if "json" in kind else _html_links(text)
        except (TransferError, ValueError):
            continue
        for link in links:
            found = urljoin(page, link).partition("#")[0]
            if unquote(urlsplit(found).path).rpartition("/")[2] == filename:
                same = urlsplit(found)[:2] == urlsplit(page)[:2]
                return found, headers if same else {}
    return None


def _pip_settings() -> dict[str, str]:
    """What pip would use, by option; the environment last, since it overrules the files.

    In an empty folder, so that no file of the user's working folder is taken for pip.
    """
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        listed = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    settings = {}
    for line in sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        where, _, value = line.partition("=")
        section, _, option = where.rpartition(".")
        if section in ("global", "download", ":env:") and value:
            settings[option] = str(ast.literal_eval(value))
    return settings


def _indexes(settings: Mapping[str, str]) -> Iterator[str]:
    if _FOR_PIP_ALONE & settings.keys():
        return
    for index in (settings.get("index-url", _DEFAULT), *settings.get("extra-index-url", "").split()):
        if urlsplit(index).scheme in ("http", "https"):
            yield index


def _login(index: str) -> tuple[str, dict[str, str]]:
    """The address without the name and password that it may carry, and these as a header."""
    parts = urlsplit(index)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return index, {}
    token = base64.b64encode(unquote(user).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {token}"}


def _json_links(text: str) -> list[str]:
    page = json.loads(text)
    files: Any = page.get("files") if isinstance(page, dict) else None
    return [str(file.get("url", "")) for file in files if isinstance(file, dict)] if isinstance(files, list) else []


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _html_links(text: str) -> list[str]:
    parser = _Links()
    parser.feed(text)
    return parser.found
