import pytest

from resnet_min.files import write_whole


def test_a_file_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_whole(path, "old")
    monkeypatch.setattr("os.fsync", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_link_that_others_planted_is_not_followed(tmp_path, monkeypatch):
    """Neither at the file's own name, nor at the temporary one, were it known."""
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "file").symlink_to(target)
    write_whole(tmp_path / "file", "new")
    assert target.read_text() == "mine" and (tmp_path / "file").read_text() == "new"
    monkeypatch.setattr("uuid.uuid4", lambda: type("Known", (), {"hex": "0" * 32}))
    (tmp_path / f".file.{'0' * 32}.tmp").symlink_to(target)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "file", "newer")
    assert target.read_text() == "mine" and (tmp_path / "file").read_text() == "new"


def test_temporary_names_cannot_be_guessed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("os.replace", lambda temporary, path: seen.append(temporary.name))
    for _ in range(20):
        write_whole(tmp_path / "file", "")
    assert len(set(seen)) == 20 and all(len(name.split(".")[2]) == 32 for name in seen)
