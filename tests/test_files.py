import fcntl
import os
from pathlib import Path

import pytest

from resnet_min import files
from resnet_min.files import sweep, write_whole


def test_a_file_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_whole(path, "old")
    monkeypatch.setattr("os.fsync", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_an_error_names_the_file(tmp_path, monkeypatch):
    with pytest.raises(OSError) as error:
        write_whole("/proc/file", "new")
    assert error.value.filename == "/proc/file"

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError) as error:
        write_whole(tmp_path / "file", "new")
    assert error.value.filename == str(tmp_path / "file")


def test_what_is_still_being_written_is_not_swept(tmp_path):
    left = tmp_path / f".file.{'0' * 32}.tmp"
    others = [tmp_path / name for name in (".file.tmp", ".lock", "file")]
    for path in (left, *others):
        path.touch()

    def content(file):
        sweep(tmp_path)
        file.write(b"whole")

    write_whole(tmp_path / "file", content)
    assert sorted(tmp_path.iterdir()) == sorted(others) and (tmp_path / "file").read_text() == "whole"
    sweep(tmp_path / "nowhere")


def test_a_file_swept_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def late(file, how):
        calls.append(file)
        if len(calls) == 1:
            os.unlink(file.name)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_whole(tmp_path / "file", "whole")
    assert len(calls) == 2 and calls[0].closed and Path(tmp_path, "file").read_text() == "whole"


def test_a_link_that_others_planted_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "target").write_text("mine")
    write_whole(tmp_path / "file", "new")
    monkeypatch.setattr("uuid.uuid4", lambda: type("Known", (), {"hex": "0" * 32}))
    (tmp_path / f".file.{'0' * 32}.tmp").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "file", "newer")
    assert (tmp_path / "target").read_text() == "mine" and (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("there", [True, False])
def test_the_file_that_a_link_names_is_written(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "target"
    if there:
        target.write_text("old")
    link.symlink_to("elsewhere/target")
    write_whole(link, "new")
    assert link.is_symlink() and not target.is_symlink() and target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_what_is_no_regular_file_stays_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        write_whole(path, "new")
        assert os.read(reader, 9) == b"new"
        os.close(reader)
    receiver, sender = os.pipe()
    write_whole(f"/dev/fd/{sender}", "new")  # a link to no path that there is
    assert os.read(receiver, 9) == b"new"
    os.close(receiver)
    os.close(sender)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, "new")


def test_a_file_keeps_its_mode(tmp_path):
    path = tmp_path / "file"
    for mode in (0o600, 0o664, 0o755):
        path.touch()
        path.chmod(mode)
        write_whole(path, "new")
        assert path.stat().st_mode & 0o7777 == mode and path.read_text() == "new"


def test_temporary_names_cannot_be_guessed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("os.replace", lambda temporary, path: seen.append(temporary.name))
    for _ in range(20):
        write_whole(tmp_path / "file", "")
    assert len(set(seen)) == 20 and all(len(name.split(".")[2]) == 32 for name in seen)


def test_a_system_without_posix_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    write_whole(tmp_path / "a", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
