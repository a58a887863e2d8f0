"""Models of the Hugging Face hub: those in the local cache, under their names, and others by `hf://org/name`.

The cache is laid out as every tool has it (`models--org--name/{blobs,refs,snapshots}`), so that nothing is fetched
twice. Only what is read here is fetched: configuration, tokenizer, safetensors or one GGUF file, never pickled weights
or code. A name means one commit: every file comes from it and is checked against the hash that the hub announced.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from athanor.base.errors import AthanorError, ModelError
from athanor.base.files import expanded_path, locked, read_json, write_text
from athanor.base.progress import progress, say
from athanor.base.transfers import RemoteFile, TransferError, download, read_json_from
from athanor.models.files import BESIDE, INDEX, WEIGHTS, shard_names

SCHEME = "hf://"
_PART = r"\w[\w.-]*"
_NAME = re.compile(rf"((?:{_PART}/)?{_PART}?)(?:@(\w[\w.%-]*))?(?:/((?:{_PART}/)*{_PART}\.gguf))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SMALL = ("config.json", "generation_config.json", *BESIDE)


@dataclass(frozen=True)
class HubName:
    """revision: a branch, tag or commit; file: a GGUF file of the repository."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @property
    def folder(self) -> Path:
        return hub_folder() / f"models--{self.repository.replace('/', '--')}"


@dataclass(frozen=True)
class CachedModel:
    """kind: its architecture, or "GGUF". size: bytes."""

    name: str
    place: Path
    kind: str
    size: int


@dataclass(frozen=True)
class _Snapshot:
    """What the hub says a revision is: its commit, and size and hash of each file."""

    name: HubName
    commit: str
    files: Mapping[str, tuple[int, str]]

    @property
    def folder(self) -> Path:
        return self.name.folder / "snapshots" / self.commit


def parse(name: str) -> HubName | None:
    """`[hf://]org/name[@revision][/file.gguf]`, or None when it is no such name."""
    found = _NAME.fullmatch(name.removeprefix(SCHEME))
    if found is None:
        return None
    revision = unquote(found[2]) if found[2] else None
    if revision and (".." in revision or revision.startswith("/") or not revision.isprintable()):
        return None
    return HubName(found[1], revision, found[3])


def hub_folder() -> Path:
    """`$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if own := os.environ.get(variable):
            return expanded_path(own).absolute()
    return _home() / "hub"


def _home() -> Path:
    if own := os.environ.get("HF_HOME"):
        return expanded_path(own).absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return expanded_path(shared).absolute() / "huggingface"


def cached(name: HubName) -> Path | None:
    """The snapshot, or its GGUF file, if all of it is in the cache."""
    for snapshot in _snapshots(name):
        if found := _usable(snapshot, name.file):
            return found
    return None


def cached_models() -> list[CachedModel]:
    """What of the cache can be read here: known architectures, and GGUF files."""
    found = []
    for folder in sorted(hub_folder().glob("models--*")):
        name = HubName(folder.name.removeprefix("models--").replace("--", "/"))
        for snapshot in _snapshots(name)[:1]:
            whole = _usable(snapshot, None)
            if whole == snapshot and (kind := _architecture(snapshot)):
                found.append(CachedModel(name.repository, snapshot, kind, _size(snapshot)))
            for file in sorted(snapshot.glob("*.gguf")):
                shown = name.repository if whole == file else f"{name.repository}/{file.name}"
                if file.is_file():
                    found.append(CachedModel(shown, file, "GGUF", file.stat().st_size))
    return found


def fetch(name: HubName) -> Path:
    """The model folder or GGUF file in the cache; what is missing is downloaded, going on where an earlier download
    stopped. Without a connection a cached copy serves. Raises an AthanorError.
    """
    if name.revision and _COMMIT.fullmatch(name.revision) and (found := cached(name)):
        return found  # a commit never changes
    try:
        snapshot = _describe(name)
        _download(snapshot, _choose(snapshot))
    except TransferError as error:
        if error.status is None and (found := cached(name)):
            say(f"{error.message} The copy in the cache is used: {found}.")
            return found
        raise _explained(name, error) from None
    except OSError as error:
        raise ModelError(
            f"{name.repository} could not be stored in {hub_folder()} ({error.strerror or error}).",
            "Free some space, or set HF_HUB_CACHE to a folder that you may write to; the same command continues.",
        ) from error
    if not name.revision or not _COMMIT.fullmatch(name.revision):
        write_text(name.folder / "refs" / (name.revision or "main"), snapshot.commit)
    return _usable(snapshot.folder, name.file) or snapshot.folder


def _snapshots(name: HubName) -> list[Path]:
    """Those in the cache that the name may mean, the likeliest first."""
    folder = name.folder / "snapshots"
    revision = name.revision or "main"
    reference = name.folder / "refs" / revision
    try:
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
        if _COMMIT.fullmatch(commit):
            return [folder / commit] if (folder / commit).is_dir() else []
        if name.revision is None:
            return sorted((each for each in folder.iterdir() if each.is_dir()), key=lambda each: -each.stat().st_mtime)
    except (OSError, ValueError):
        pass
    return []


def _usable(snapshot: Path, file: str | None) -> Path | None:
    """The snapshot if it holds a whole model, or its file, or its only GGUF file."""
    if file:
        return snapshot / file if (snapshot / file).is_file() else None
    try:
        if (snapshot / "config.json").is_file():
            names = shard_names(snapshot / INDEX) if (snapshot / INDEX).is_file() else [WEIGHTS]
            if all((snapshot / name).is_file() for name in names):
                return snapshot
    except AthanorError:
        return None
    found = [path for path in snapshot.glob("*.gguf") if path.is_file()]
    return found[0] if len(found) == 1 else None


def _architecture(snapshot: Path) -> str | None:
    from athanor.models.families import families

    try:
        settings = read_json(snapshot / "config.json")
    except AthanorError:
        return None
    listed = settings.get("architectures") if isinstance(settings, dict) else None
    known = {name for family in families().values() for name in family.architectures}
    return next((n for n in listed if isinstance(n, str) and n in known), None) if isinstance(listed, list) else None


def _size(snapshot: Path) -> int:
    return sum(path.stat().st_size for path in snapshot.rglob("*") if path.is_file())


def _endpoint() -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    if not endpoint.startswith(("https://", "http://")):
        raise ModelError(f"HF_ENDPOINT is {endpoint!r}.", "It begins with https://.")
    return endpoint


def _headers() -> dict[str, str]:
    """The user's token, from the places that the hub's own client reads."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    file = Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token")
    if not token and file.is_file():
        token = file.read_text(encoding="utf-8", errors="replace")
    token = token.strip()
    return {"User-Agent": "athanor"} | (
        {"Authorization": f"Bearer {token}"} if token.isascii() and token.isprintable() and token else {}
    )


def _describe(name: HubName) -> _Snapshot:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise TransferError("HF_HUB_OFFLINE is set.", "Unset it, or take a model that is in the cache.")
    revision = quote(name.revision or "main", safe="")
    address = f"{_endpoint()}/api/models/{quote(name.repository)}/revision/{revision}?blobs=true"
    answer = read_json_from(address, _headers())
    try:
        files = {}
        for entry in answer["siblings"]:
            size, digest = entry["size"], entry["lfs"]["sha256"] if entry.get("lfs") else entry["blobId"]
            file, inside = entry["rfilename"], not {"", ".", ".."} & {*entry["rfilename"].split("/")}
            if inside and isinstance(size, int) and size >= 0 and _DIGEST.fullmatch(digest):
                files[file] = (size, digest)
        commit = str(answer["sha"])
    except (KeyError, TypeError, AttributeError):
        commit = ""
    if not _COMMIT.fullmatch(commit):
        raise ModelError(f"{address} does not describe a model.", "Is HF_ENDPOINT a Hugging Face hub?")
    return _Snapshot(name, commit, files)


def _choose(snapshot: _Snapshot) -> list[str]:
    """The files of the model. What says which they are, and whether it can be read, is downloaded first."""
    name, files = snapshot.name, snapshot.files
    quantised = sorted(file for file in files if file.endswith(".gguf"))
    choices = f"{SCHEME}{name.repository}/"
    if name.file:
        if name.file not in files:
            raise ModelError(f"{name.repository} has no file {name.file}.", f"There are: {', '.join(quantised)}.")
        return [name.file]
    if "config.json" in files and (WEIGHTS in files or INDEX in files):
        small = [file for file in _SMALL if file in files]
        _download(snapshot, ["config.json"])
        if _architecture(snapshot.folder) is None:
            from athanor.models.families import read_config

            read_config(read_json(snapshot.folder / "config.json"), name.repository)
        if WEIGHTS in files:
            return [*small, WEIGHTS]
        _download(snapshot, [INDEX])
        return [*small, INDEX, *shard_names(snapshot.folder / INDEX)]
    if len(quantised) == 1:
        return quantised
    if quantised:
        raise ModelError(f"{name.repository} holds {len(quantised)} GGUF files.", f"Choose: {choices}{quantised[0]}.")
    raise ModelError(
        f"{name.repository} holds no model that is read here.",
        f"Read are config.json with {WEIGHTS} (or shards), and .gguf files; never pickled weights.",
    )


def _download(snapshot: _Snapshot, files: list[str]) -> None:
    if strange := [file for file in files if file not in snapshot.files]:
        raise ModelError(f"{snapshot.name.repository} lacks {strange[0]}, which its index names.")
    missing = [file for file in files if not (snapshot.folder / file).is_file()]
    total = sum(snapshot.files[file][0] for file in missing)
    if not missing:
        return
    free = shutil.disk_usage(_existing(snapshot.name.folder)).free
    if total > free:
        raise ModelError(f"{snapshot.name.repository} has {total} bytes, {hub_folder()} has room for {free}.")
    with progress(f"Fetching {snapshot.name.repository}", total=total, unit="B") as bar:
        before = 0
        for file in missing:
            _store(snapshot, file, lambda have, before=before: bar.update(completed=before + have))
            before += snapshot.files[file][0]


def _store(snapshot: _Snapshot, file: str, seen: Any) -> None:
    size, digest = snapshot.files[file]
    repository = snapshot.name.folder
    blob, place = repository / "blobs" / digest, snapshot.folder / file
    address = f"{_endpoint()}/{quote(snapshot.name.repository)}/resolve/{snapshot.commit}/{quote(file)}"
    with locked(hub_folder() / ".locks" / repository.name / f"{digest}.lock"):
        if not blob.is_file():
            download(RemoteFile(address, size, digest), blob, _headers(), seen)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_file():
            return
        try:
            place.unlink(missing_ok=True)
            place.symlink_to(os.path.relpath(blob, place.parent))
        except OSError:  # a system without links
            shutil.copyfile(blob, place)


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())


def _explained(name: HubName, error: TransferError) -> AthanorError:
    if error.status in (401, 403):
        return ModelError(
            f"The hub does not give {name.repository} ({error.status}): it is private, its terms want to be accepted, "
            "or there is no such model.",
            f"Check the name, open {_endpoint()}/{name.repository} in a browser, and set HF_TOKEN to a token of yours.",
        )
    if error.status == 404:
        wanted = f"{name.repository} at {name.revision}" if name.revision else name.repository
        return ModelError(f"The hub has no model {wanted} (404).", "Check the name and the revision.")
    return error
