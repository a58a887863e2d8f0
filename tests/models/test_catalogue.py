"""Packaged models: unpacked once from the verified wheel, listed, and found by name."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from athanor.base.downloads import PinnedPackage, cached_path
from athanor.base.errors import AthanorError
from athanor.base.files import sha256_file
from athanor.engine.locate import find_model
from athanor.models import catalogue, terms


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> catalogue.PackagedModel:
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "cache" / "packages" / "toy-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/toy.gguf", b"GGUF and more")
    package = PinnedPackage("toy", "1.0", wheel.name, sha256_file(wheel), wheel.stat().st_size)
    files = (catalogue.PackagedFile("toy.gguf", 13, ("toy/toy.gguf",)),)
    model = catalogue.PackagedModel("toy", (package,), files, 1, "MIT", "a toy")
    monkeypatch.setitem(catalogue.MODELS, "toy", model)
    return model


def test_a_packaged_model_is_unpacked_once(packaged: catalogue.PackagedModel) -> None:
    assert not packaged.is_here
    found = find_model("Toy")
    assert found.read_bytes() == b"GGUF and more"
    assert packaged.is_here
    cached_path(packaged.packages[0]).unlink()
    assert find_model("toy") == found


def test_two_at_once_do_not_meet(packaged: catalogue.PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_BLOCK", 1)
    with ThreadPoolExecutor(8) as pool:
        for round in range(20):
            model = replace(packaged, packages=(replace(packaged.packages[0], version=f"{round}"),))
            found = list(pool.map(lambda _, model=model: model.fetch().read_bytes(), range(8)))
            assert found == [b"GGUF and more"] * 8


def test_a_wheel_without_the_file_has_a_sentence(packaged: catalogue.PackagedModel) -> None:
    other = catalogue.PackagedFile("toy.gguf", 13, ("toy/other.gguf",))
    with pytest.raises(AthanorError, match="damaged"):
        replace(packaged, files=(other,)).fetch()
    with pytest.raises(AthanorError, match="13 bytes"):
        replace(packaged, files=(replace(packaged.files[0], size=14),)).fetch()
    assert not packaged.place.exists()


def test_a_folder_and_a_file_in_pieces(packaged: catalogue.PackagedModel, tmp_path: Path) -> None:
    wheels = []
    for number, content in enumerate((b"one ", b"two")):
        wheel = tmp_path / "cache" / "packages" / f"part{number}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"piece{number}", content)
            archive.writestr("config.json", b"{}")
        wheels.append(PinnedPackage(f"part{number}", "1.0", wheel.name, sha256_file(wheel), wheel.stat().st_size))
    files = (
        catalogue.PackagedFile("model.bin", 7, ("piece0", "piece1")),
        catalogue.PackagedFile("1_Pooling/config.json", 2, ("config.json",)),
    )
    model = replace(packaged, packages=tuple(wheels), files=files)
    place = model.fetch()
    assert (place / "model.bin").read_bytes() == b"one two"
    assert (place / "1_Pooling" / "config.json").read_bytes() == b"{}"
    (place / "model.bin").write_bytes(b"cut")
    assert not model.is_here
    assert (model.fetch() / "model.bin").stat().st_size == 7


def test_terms_are_accepted_first_and_once(
    packaged: catalogue.PackagedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = replace(packaged, terms=terms.Terms("toys", "Toy Terms", "https://example.org/terms"))
    monkeypatch.delenv(terms.VARIABLE, raising=False)
    with pytest.raises(AthanorError, match="--accept-terms toys"):
        model.fetch()
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(getattr(terms.sys, stream), "isatty", lambda: True, raising=False)
    monkeypatch.setattr(terms.sys.stdin, "readline", lambda: "\n", raising=False)
    with pytest.raises(AthanorError, match="accepted"):
        model.fetch()
    assert "https://example.org/terms" in capsys.readouterr().err
    monkeypatch.setattr(terms.sys.stdin, "readline", lambda: "y\n", raising=False)
    assert model.fetch().is_file()
    monkeypatch.setattr(terms.sys.stdin, "readline", lambda: pytest.fail("asked twice"), raising=False)
    model.place.unlink()
    assert model.fetch().is_file()


def test_terms_may_be_accepted_by_a_variable(
    packaged: catalogue.PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(terms.VARIABLE, "others,toys")
    assert replace(packaged, terms=terms.Terms("toys", "Toy Terms", "https://example.org")).fetch().is_file()


def test_every_packaged_model_is_pinned() -> None:
    for name, model in catalogue.MODELS.items():
        assert model.name == name
        assert all(len(bytes.fromhex(package.sha256)) == 32 for package in model.packages)
        assert all(len(file.members) in (1, len(model.packages)) for file in model.files)
        assert model.licence
