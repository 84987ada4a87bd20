import pytest

from resnet_min.files import write_whole


def test_a_file_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_whole(path, "old")
    monkeypatch.setattr("os.fsync", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
