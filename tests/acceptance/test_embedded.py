"""The data of the embedded server is for its user alone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from converse_mongo.embedded import EmbeddedServer, EmbeddedServerError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")


@pytest.fixture(autouse=True)
def open_mask() -> Iterator[None]:
    """As lax as a system can be."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_directory__is_made_private_with_its_parents(tmp_path: Path) -> None:
    above = tmp_path / "above"
    data = above / "data"
    with EmbeddedServer(data):
        assert (mode(above), mode(data)) == (0o700, 0o700)
        assert any(data.iterdir())


def test_directory__that_others_can_use_is_closed_to_them(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for found in (0o777, 0o701):  # empty, and with the data of an earlier version
        data.chmod(found)
        with EmbeddedServer(data):
            assert mode(data) == 0o700


def test_directory__with_other_files_is_left_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "notes.txt").touch()
    server = EmbeddedServer(home)
    with pytest.raises(EmbeddedServerError, match="chmod 700"):
        server.start()
    assert mode(home) == 0o755
    home.chmod(0o700)
    with server:
        assert mode(home) == 0o700


def test_directory__of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(EmbeddedServerError, match="another user"):
        EmbeddedServer(tmp_path).start()


def test_directory__that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(EmbeddedServerError, match="cannot be used"):
            EmbeddedServer(path).start()


def test_server__has_no_uri_in_its_text(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    assert server.uri not in f"{server!r} {server}"
