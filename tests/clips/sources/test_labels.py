"""Labels: which there are, in which order, and what is none."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdit.clips.source import SourceRules, find_source
from mmdit.clips.sources.labels import MAX_NUMBER, Labels, read_classes
from mmdit.errors import Refused


def found(*values: object, names: list[str] | None = None) -> tuple[list[str | None], list[str]]:
    labels = Labels(names, "classes.txt")
    return [labels.name(value, f"row {number}") for number, value in enumerate(values, 1)], labels.names()


def test_names_are_sorted() -> None:
    assert found("b", " a ", "b", None, "") == (["b", "a", "b", None, None], ["a", "b"])


def test_numbers_keep_their_order_and_a_gap_moves_none() -> None:
    assert found("10", "2", 4) == (["10", "2", "4"], [str(number) for number in range(11)])
    assert found("01", "1") == (["1", "1"], ["0", "1"])


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_number_is_its_own_place(numbers: set[int]) -> None:
    names, labels = found(*numbers)
    assert all(labels[number] == name for number, name in zip(numbers, names, strict=True))


@pytest.mark.parametrize("values", [("cat", "3"), ("3", "cat"), (3, "cat"), ("0", "0", "cat")])
def test_names_and_numbers_do_not_mix(values: tuple[object, ...]) -> None:
    with pytest.raises(Refused, match=r"names and.*numbers.*row \d and row \d.*'cat' and \d.*classes\.txt") as error:
        found(*values)
    assert f"row {values.index('cat') + 1} and row " in str(error.value)


@pytest.mark.parametrize("value", [-1, MAX_NUMBER, str(MAX_NUMBER), 10**30, "9" * 5000])
def test_numbers_out_of_range(value: object) -> None:
    with pytest.raises(Refused, match=rf"row 2.*0 to {MAX_NUMBER - 1}"):
        found("0", value)


@pytest.mark.parametrize("value", ["1.0", "-1", "1e3", ".5", "nan", "-inf", 1.0, float("nan"), True, ["a"], "a\0b"])
def test_what_is_neither_name_nor_whole_number(value: object) -> None:
    with pytest.raises(Refused, match="row 2"):
        found("a", value)


def test_given_names_by_name_or_number() -> None:
    assert found("cat", "0", 1, None, names=["dog", "cat"]) == (["cat", "dog", "cat", None], ["dog", "cat"])


@pytest.mark.parametrize("value", [2, -1, "2", "-1", "bird", "1.0", 0.0, False, "10"])
def test_given_names_bound_what_a_label_can_be(value: object) -> None:
    with pytest.raises(Refused, match=r"row 2"):
        found("cat", value, names=["dog", "cat"])
    with pytest.raises(Refused, match=r"row 1.*got 2, expected 0 to 1, or one of the 2 names"):
        found(2, names=["dog", "cat"])


def test_given_names_that_cannot_be_told_apart() -> None:
    with pytest.raises(Refused, match="two labels have one name"):
        Labels(["a", "b", "a"], "here")
    with pytest.raises(Refused, match=r"another's number.*1 as label 0"):
        Labels(["1", "2"], "here")
    assert Labels(["0", "1"], "here").name("1", "row") == "1"
    assert Labels(["10", "9"], "here", only_names=True).name("9", "row") == "9"


def test_classes_txt(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("path,label\na.mp4,dog\nb.mp4,1\n")
    (tmp_path / "classes.txt").write_text("\ufeffdog\r\ncat, big \nbird\n\n", encoding="utf-8")
    source = find_source(tmp_path)
    assert source.labels == ["dog", "cat, big", "bird"] and [clip.label for clip in source.clips] == ["dog", "cat, big"]
    rules = SourceRules(label_names=("x", "y", "dog"))
    assert [clip.label for clip in find_source(tmp_path, rules=rules).clips] == ["dog", "y"]
    (tmp_path / "classes.txt").write_text("dog\n\nbird\n")
    with pytest.raises(Refused, match=r"no name.*classes\.txt, line 2"):
        find_source(tmp_path)
    assert read_classes(tmp_path / "none.txt") is None
