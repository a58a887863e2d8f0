"""Packaged models: unpacked once from the verified wheel, listed, and found by name."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from athanor.base.downloads import PinnedPackage
from athanor.base.errors import AthanorError
from athanor.base.files import sha256_file
from athanor.engine.locate import find_model
from athanor.models import catalogue


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> catalogue.PackagedModel:
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "cache" / "packages" / "toy-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/toy.gguf", b"GGUF and more")
    package = PinnedPackage("toy", "1.0", wheel.name, sha256_file(wheel), wheel.stat().st_size)
    model = catalogue.PackagedModel("toy", package, "toy/toy.gguf", 13, 1, "MIT", "a toy")
    monkeypatch.setitem(catalogue.MODELS, "toy", model)
    return model


def test_a_packaged_model_is_unpacked_once(packaged: catalogue.PackagedModel) -> None:
    assert not packaged.is_here
    found = find_model("Toy")
    assert found.read_bytes() == b"GGUF and more"
    assert packaged.is_here
    (packaged.file.parents[3] / "packages" / packaged.package.filename).unlink()
    assert find_model("toy") == found


def test_a_wheel_without_the_file_has_a_sentence(packaged: catalogue.PackagedModel) -> None:
    with pytest.raises(AthanorError, match="damaged"):
        replace(packaged, member="toy/other.gguf").fetch()
    assert not packaged.file.exists()


def test_every_packaged_model_is_pinned() -> None:
    for name, model in catalogue.MODELS.items():
        assert model.name == name
        assert len(bytes.fromhex(model.package.sha256)) == 32
        assert model.licence
