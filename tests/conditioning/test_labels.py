from typing import Any

import pytest

from mmdit.conditioning import Labels
from mmdit.errors import Refused

LABELS = Labels(["coat", "Dress", "skirt and top", "7"])


@pytest.mark.parametrize(
    ("label", "wanted"),
    [("coat", 0), ("dress", 1), (" COAT ", 0), ("skirt and top", 2), (1, 1), ("1", 1), ("7", 3), (0, 0)],
)
def test_a_label_by_name_or_by_number(label: object, wanted: Any) -> None:
    assert LABELS.id(label) == wanted


def test_the_null_id_is_one_past_the_last_and_cannot_be_asked_for() -> None:
    assert LABELS.null_id == len(LABELS) == 4
    for asked in (4, "4"):
        with pytest.raises(Refused, match="0 to 3"):
            LABELS.id(asked)


@pytest.mark.parametrize("label", [-1, "-1", 100, True, 1.0, None, ["coat"]])
def test_numbers_out_of_range_and_other_things_are_refused(label: object) -> None:
    with pytest.raises(Refused, match="coat"):
        LABELS.id(label)


def test_an_unknown_label_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refused, match=r"'dres'.*did you mean 'Dress'"):
        LABELS.id("dres")
    with pytest.raises(Refused, match=r"expected one of: coat, Dress, skirt and top, 7$"):
        LABELS.id("zzzzzz")


def test_a_refusal_names_few_of_many_labels() -> None:
    many = Labels(f"label number {i}" for i in range(1000))
    with pytest.raises(Refused, match="and 988 more") as refusal:
        many.id("zzz")
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("names", [["a", "a"], ["a", ""], ["a", " "], ["a", 3]])
def test_bad_label_names_are_refused(names: list[Any]) -> None:
    with pytest.raises(Refused):
        Labels(names)
