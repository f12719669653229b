import os
import stat
import threading

import pytest

from dsnb.files import write_all_whole, write_whole


def test_many_threads_on_one_path_never_show_half_a_file(tmp_path):
    path, errors, done = tmp_path / "shared", [], threading.Event()
    write_whole(path, b"start")

    def write(letter):
        try:
            for length in range(1, 60):
                write_whole(path, letter * length * 1000)
        except OSError as error:
            errors.append(error)

    def watch():
        while not done.is_set():
            seen = path.read_bytes()
            if seen != b"start" and (len(set(seen)) != 1 or len(seen) % 1000):
                errors.append(seen[:10])

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    watcher = threading.Thread(target=watch)
    for thread in (*threads, watcher):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert not errors
    assert [file.name for file in tmp_path.iterdir()] == ["shared"]


def test_a_link_in_its_place_is_replaced_and_its_target_untouched(tmp_path):
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"precious" and not (tmp_path / "link").is_symlink()


def test_a_pipe_or_a_device_in_its_place_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="is not a regular file"):
            write_whole(path, b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "mine", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600


def test_of_several_files_all_change_or_none(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError):
        write_all_whole({tmp_path / "a": b"new", tmp_path / "missing" / "b": b"new"})
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
