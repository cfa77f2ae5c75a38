"""Parts of files, as if they were files."""

import io
import os
from pathlib import Path

import pytest
from videos import levels, numbers, tarred, write

from mmdit.clips.decode import BadClip, ReadRequest, read_request
from mmdit.clips.window import Window


def test_a_window_is_a_file(tmp_path: Path) -> None:
    data = os.urandom(1000)
    (tmp_path / "a").write_bytes(data)
    with Window(str(tmp_path / "a"), 100, 500) as window:
        part = io.BytesIO(data[100:600])
        for place, whence in ((0, 0), (490, 0), (-10, 2), (5, 1), (0, 2), (700, 0), (300, 0)):
            assert window.seek(place, whence) == part.seek(place, whence) == window.tell()
            assert window.read(60) == part.read(60)
        window.seek(0)
        assert window.read() == data[100:600]
        with pytest.raises(ValueError, match="no such place"):
            window.seek(-1)
        assert window.readable() and window.seekable() and not window.writable()
    with Window(str(tmp_path / "a"), 990) as window:
        assert window.read() == data[990:]
        number = window._file
    with pytest.raises(OSError):
        os.fstat(number)


def test_no_file_is_left_open(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", levels(16))
    (tmp_path / "bad.mp4").write_text("no video")
    offset, length = tarred(tmp_path / "all.tar", path)[path.name]
    request = ReadRequest(str(tmp_path / "all.tar"), 5, (32, 64), 8.0, offset=offset, length=length)
    read_request(request)
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        assert numbers(read_request(request)) == [0, 3, 6, 9, 12]
        for name in ("bad.mp4", "none.mp4", "all.tar"):
            with pytest.raises(BadClip):
                read_request(ReadRequest(str(tmp_path / name), 5, (32, 64), 8.0))
    assert len(os.listdir("/dev/fd")) == before
