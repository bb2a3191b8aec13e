"""`credential:NAME` in configurations: what systemd's LoadCredential= hands over."""

from __future__ import annotations

from pathlib import Path

import pytest
from zgate_config import ConfigError, StrictModel, load_yaml
from zgate_config.credentials import CredentialError, credential
from zgate_config.dialling import load_with_flags
from zgate_config.types import CredentialPath, ReadableFile


class Files(StrictModel):
    """A gateway's kind of path, and an agent's."""

    key: ReadableFile | None = None
    certificate: CredentialPath | None = None


@pytest.fixture
def handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "gateway.key").write_text("secret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


def load(tmp_path: Path, text: str) -> Files:
    file = tmp_path / "files.yaml"
    file.write_text(text)
    return load_yaml(file, Files)


def test_a_credential_is_a_path_in_its_folder(tmp_path: Path, handed_over: Path) -> None:
    files = load(tmp_path, "key: credential:gateway.key\ncertificate: credential:gateway.key\n")
    assert files.key == files.certificate == handed_over / "gateway.key"
    assert files.model_dump(mode="json")["key"] == str(handed_over / "gateway.key")


def test_a_file_of_a_folder_is_named_as_it_is_there(tmp_path: Path, handed_over: Path) -> None:
    """systemd.exec(5): the files of a folder get its ID and an underscore before their names."""
    (handed_over / "zgate_ca.crt").write_text("")
    assert credential("ca.crt") == handed_over / "zgate_ca.crt"
    (handed_over / "ca.crt").write_text("")
    assert credential("ca.crt") == handed_over / "ca.crt"


def test_flags_may_name_one(handed_over: Path) -> None:
    files = load_with_flags(None, {"certificate": "credential:gateway.key"}, Files)
    assert files.certificate == handed_over / "gateway.key"


def test_other_paths_are_paths_still(tmp_path: Path, handed_over: Path) -> None:
    (tmp_path / "credential").write_text("")
    files = load(tmp_path, "key: credential\ncertificate: a/b\n")
    assert files.key == tmp_path / "credential"
    assert files.certificate == tmp_path / "a/b"


def test_without_a_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "\nkey: credential:gateway.key\n")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/files.yaml:2: key: expected a path, or a service that")
    assert "LoadCredential=gateway.key:FILE" in text
    assert "this process has no CREDENTIALS_DIRECTORY" in text


def test_a_name_that_is_not_handed_over(handed_over: Path) -> None:
    with pytest.raises(CredentialError, match=r"LoadCredential=ca.crt:FILE\); there are gateway"):
        credential("ca.crt")
    for number in range(9):
        (handed_over / f"a{number}").write_text("")
    with pytest.raises(CredentialError, match=r"there are a0, .*, a7, \.\.\.\Z"):
        credential("ca.crt")


def test_a_folder_that_is_empty_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(CredentialError, match=r"there are none\Z"):
        credential("ca.crt")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "none"))
    with pytest.raises(CredentialError, match=r"there are none: .*No such file"):
        credential("ca.crt")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../ca.key", "a/b", "a b", "a:b", "x" * 256, "a\n"]
)
def test_names_that_lead_elsewhere(handed_over: Path, name: str) -> None:
    with pytest.raises(CredentialError, match="a credential's name of"):
        credential(name)
