"""A GGUF file becomes an ordinary folder, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demur.errors import UserError
from demur.models import checkpoint as gguf


def test_a_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "cache"))
    converted: list[Path] = []

    def convert(path: Path, folder: Path) -> Path:
        converted.append(path)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        return folder

    monkeypatch.setattr(gguf, "_convert", convert)
    file = tmp_path / "a.gguf"
    file.write_bytes(b"weights")
    assert gguf.converted(file) == gguf.converted(file)
    assert converted == [file]
    file.write_bytes(b"others")
    assert gguf.converted(file) != converted[0]
    assert len(converted) == 2


def test_what_is_not_a_gguf_is_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="no such file"):
        gguf.converted(tmp_path / "none.gguf")
    (tmp_path / "a.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a GGUF that transformers can read"):
        gguf.converted(tmp_path / "a.gguf")
    assert not list((tmp_path / "cache").rglob("config.json"))
