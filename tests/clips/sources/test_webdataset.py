"""Tar files: members found by the index, and tars that are not what they say."""

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mmdit.clips.source import Part, SourceClip, SourceRules, find_source
from mmdit.errors import Refused

Member = tuple[str, bytes] | tarfile.TarInfo


def write(path: Path, *members: Member, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def bytes_of(folder: Path, clip: SourceClip) -> bytes:
    assert clip.part is not None
    return (folder / clip.part.file).read_bytes()[clip.part.offset : clip.part.offset + clip.part.size]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_a_key_are_one_clip_and_parts_hold_its_bytes(tmp_path: Path, form: int) -> None:
    about = {"caption": "other", "label": 1, "start": 0.5, "end": 2, "split": "test", "url": "x", "n": 3}
    write(
        tmp_path / "s-0.tar", ("./0001.mp4", b"first"), ("0001.txt", "a coat 🧥\n".encode()), ("0002.json", b"{}"),
        ("0001.json", json.dumps(about).encode()), ("deep/0001.left.JPG", b"third"), ("deep/0001.cls", b"0\n"),
        form=form,
    )  # fmt: skip
    long = "folder/" * 20 + "0" * 120
    write(tmp_path / "s-1.tar", ("0001.webm", b""), (f"{long}.mp4", b"fifth" * 300), form=tarfile.GNU_FORMAT)
    found = find_source(tmp_path)
    assert found.kind == "webdataset" and found.folder == tmp_path
    by_path = {clip.path: clip for clip in found.clips}
    assert list(by_path) == [
        "s-0.tar/0001.mp4", "s-0.tar/deep/0001.left.JPG", "s-1.tar/0001.webm", f"s-1.tar/{long}.mp4"
    ]  # fmt: skip
    assert [bytes_of(tmp_path, clip) for clip in found.clips] == [b"first", b"third", b"", b"fifth" * 300]
    first = by_path["s-0.tar/0001.mp4"]
    assert first == SourceClip(
        first.path, "a coat 🧥", "1", "test", {"url": "x", "n": "3"}, 0.5, 2.0, first.part
    )  # fmt: skip
    assert by_path["s-0.tar/deep/0001.left.JPG"].label == "0" and found.labels == ["0", "1"]
    assert found.notes["texts without a video or image"] == 1
    assert "s-0.tar, 0002.json at byte " in found.first["texts without a video or image"]
    assert found.notes[".txt and .json tell another caption; .txt is taken"] == 1


def test_one_tar_as_root_and_other_members_counted(tmp_path: Path) -> None:
    tar = write(
        tmp_path / "x.tar", special("deep", tarfile.DIRTYPE), ("deep/a.mp4", b"v"), ("deep/a.npy", b"n"),
        ("._a.mp4", b"m"), ("README", b"r"), ("a.jpg", b"i"),
    )  # fmt: skip
    found = find_source(tar, rules=SourceRules(media="video"))
    with tarfile.open(tar) as opened:
        assert found.clips[0].part == Part("x.tar", opened.getmember("deep/a.mp4").offset_data, 1)
    assert found.notes == {"members of other kinds": 2, "members not asked for": 1, "without a caption": 1}


def test_two_videos_of_a_key(tmp_path: Path) -> None:
    tar = write(tmp_path / "x.tar", ("a.mp4", b"v"), ("a.txt", b"t"), ("a.jpg", b"i"))
    with pytest.raises(Refused, match=r"two videos or images of one key.*a\.jpg.* at byte \d+.*a\.mp4 and a\.j"):
        find_source(tar)
    assert find_source(tar, rules=SourceRules(media="image")).clips[0].path == "x.tar/a.jpg"


HOSTILE: list[tuple[Member, str]] = [
    (("../a.mp4", b"v"), "leads out of the tar"),
    (("deep/../../a.mp4", b"v"), "leads out of the tar"),
    (("/etc/a.mp4", b"v"), "leads out of the tar"),
    (special("a.mp4", tarfile.SYMTYPE, "/etc/passwd"), "no plain file, .*got a link"),
    (special("a.mp4", tarfile.LNKTYPE, "b.mp4"), "no plain file, .*got a link"),
    (special("a.mp4", tarfile.CHRTYPE), "no plain file, .*got a device or pipe"),
    (special("a.mp4", tarfile.FIFOTYPE), "no plain file, .*got a device or pipe"),
    (("./b.mp4", b"v"), "two members of one name"),
    (("c.json", b'{"start": "x"}'), r"bad start.*c\.mp4 at byte"),
    (("c.json", b"[1]"), r"not a JSON object.*c\.mp4 at byte \d+ \(\.json\)"),
    (("c.txt", b"caf\xe9"), r"not UTF-8 \(byte 0xe9\).*c\.mp4"),
    (("c.txt", b"a\0b"), r"NUL.*c\.mp4"),
]


@pytest.mark.parametrize(("member", "words"), HOSTILE, ids=[str(number) for number in range(len(HOSTILE))])
def test_hostile_members_are_named(tmp_path: Path, member: Member, words: str) -> None:
    write(tmp_path / "x.tar", ("b.mp4", b"v"), ("c.mp4", b"v"), member)
    with pytest.raises(Refused, match=words) as error:
        find_source(tmp_path)
    assert f"{tmp_path / 'x.tar'}, " in str(error.value) and " at byte " in str(error.value)


def test_a_text_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdit.clips.sources.webdataset.MAX_TEXT", 10)
    write(tmp_path / "x.tar", ("b.mp4", b"v"), ("b.txt", b"eleven char"))
    with pytest.raises(Refused, match=r"too long.*b\.mp4.*\.txt of 11 bytes"):
        find_source(tmp_path)


@pytest.mark.parametrize("cut", [1, 511, 512, 513, 700, 1023, 1024, 1500, 2048, 2600, 3072, 3073, 3500, 0])
def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    tar = write(tmp_path / "x.tar", ("a.mp4", b"v" * 600), ("b.mp4", b"w" * 100), form=tarfile.USTAR_FORMAT)
    whole = tar.read_bytes()  # headers at 0 and 1536, the end mark at 2560
    tar.write_bytes(whole[:cut])
    if cut >= 2560 + 512:
        assert len(find_source(tmp_path).clips) == 2
    else:
        with pytest.raises(Refused, match=r"(cut short|damaged tar).*x\.tar"):
            find_source(tmp_path)


@pytest.mark.parametrize("offset", [0, 100, 124, 148, 156, 1536, 1536 + 124, 1536 + 148])
def test_a_damaged_header_is_refused(tmp_path: Path, offset: int) -> None:
    tar = write(tmp_path / "x.tar", ("a.mp4", b"v" * 600), ("b.mp4", b"w" * 100), form=tarfile.USTAR_FORMAT)
    data = bytearray(tar.read_bytes())
    data[offset] ^= 0x41
    tar.write_bytes(data)
    with pytest.raises(Refused, match=r"damaged tar.*x\.tar, after byte"):
        find_source(tmp_path)


def header(size: bytes, kind: bytes = b"0", name: str = "a.mp4") -> bytes:
    block = bytearray(special(name, kind).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"S"])
@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40), 1 << 40, 1 << 62])
def test_sizes_that_lie_end_soon(tmp_path: Path, kind: bytes, size: int) -> None:
    """Backwards, which has kept tarfile going for ever, and beyond the end of the file."""
    number = b"\xff" + struct.pack(">q", size).rjust(11, b"\xff") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    (tmp_path / "x.tar").write_bytes(header(b"%011o\0" % 0) + header(number, kind, "._b") + bytes(2048))
    with pytest.raises(Refused, match=r"x\.tar"):
        find_source(tmp_path)


def test_a_file_with_holes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(header(b"%011o\0" % 512, b"S") + b"v" * 512 + bytes(1024))
    with pytest.raises(Refused, match=r"no plain file.*'a\.mp4' at byte 0.*a file with holes"):
        find_source(tmp_path)


def test_a_cut_member_is_named(tmp_path: Path) -> None:
    tar = write(tmp_path / "x.tar", ("a.mp4", b"v" * 600), ("b.mp4", b"w" * 100), form=tarfile.USTAR_FORMAT)
    whole = tar.read_bytes()
    for cut, words in ((1111, r"'a\.mp4' at byte 0, got 1111 bytes, expected 1112"), (2100, r"'b\.mp4' at byte 1536")):
        tar.write_bytes(whole[:cut])
        with pytest.raises(Refused, match=rf"cut short, in .*x\.tar, {words}"):
            find_source(tmp_path)


def test_a_huge_header_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdit.clips.sources.tar.MAX_TEXT", 4096)
    (tmp_path / "x.tar").write_bytes(header(b"%011o\0" % (1 << 20), b"x") + bytes(1 << 21))
    with pytest.raises(Refused, match=r"damaged tar.*a header of \d+ bytes"):
        find_source(tmp_path)


def test_what_follows_the_end_is_not_dropped(tmp_path: Path) -> None:
    one = write(tmp_path / "x.tar", ("a.mp4", b"v")).read_bytes()
    two = write(tmp_path / "y.tar", ("b.mp4", b"v")).read_bytes()
    (tmp_path / "y.tar").unlink()
    (tmp_path / "x.tar").write_bytes(one + two)
    with pytest.raises(Refused, match=r"another behind it.*x\.tar.*not joined by cat"):
        find_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar", "w:gz"), ("x.tar", "w:xz"), ("x.tar", "w:bz2")],
)
def test_compressed_tars_are_refused(tmp_path: Path, name: str, mode: Any) -> None:
    with tarfile.open(tmp_path / name, mode):
        pass
    with pytest.raises(Refused, match=rf"a compressed tar.*{name}.*gunzip"):
        find_source(tmp_path)


def test_a_folder_of_both_is_asked_about(tmp_path: Path) -> None:
    write(tmp_path / "backup.tar", ("a.mp4", b"v"))
    (tmp_path / "b.mp4").write_bytes(b"v")
    with pytest.raises(Refused, match=r"tar files and videos.*backup\.tar and b\.mp4.*webdataset or folder"):
        find_source(tmp_path)
    assert [clip.path for clip in find_source(tmp_path, kind="folder").clips] == ["b.mp4"]
    assert [clip.path for clip in find_source(tmp_path, kind="webdataset").clips] == ["backup.tar/a.mp4"]
    (tmp_path / "backup.tar").unlink()
    with pytest.raises(Refused, match="no tar files"):
        find_source(tmp_path, kind="webdataset")
