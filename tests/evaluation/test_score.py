import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdit.errors import Refused
from mmdit.evaluation.score import Scored, attribute_scores, columns, confusion, psnr, score_table, wilson


def test_wilson_has_the_published_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(127, 128) == pytest.approx((0.9571, 0.9986), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(pair: tuple[int, int]) -> None:
    correct, count = pair
    low, high = wilson(correct, count)
    assert 0 <= low <= correct / count <= high <= 1
    assert wilson(count - correct, count) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("pair", [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(pair: tuple[int, int]) -> None:
    with pytest.raises(Refused):
        wilson(*pair)


READ = {"garment": ["coat", "dress", "coat", "unclear"], "colour": ["red", "red", "blue", "blue"]}
WANTED = {"garment": ["coat", "coat", "coat", "dress"], "colour": ["red", "red", "blue", "blue"]}


def test_scores_count_what_reads_as_wanted() -> None:
    scores = attribute_scores(READ, WANTED)
    assert (scores["garment"].correct, scores["garment"].count, scores["garment"].accuracy) == (2, 4, 0.5)
    assert scores["colour"].accuracy == 1
    assert attribute_scores(READ, {"colour": WANTED["colour"]}).keys() == {"colour"}


def test_an_unclear_reading_is_never_right() -> None:
    assert attribute_scores({"garment": ["unclear"]}, {"garment": ["unclear"]})["garment"].correct == 0


@pytest.mark.parametrize("wanted", [{"motion": ["walks"] * 4}, {"garment": ["coat"]}, {"garment": []}])
def test_scores_refuse_what_does_not_match(wanted: dict[str, list[str]]) -> None:
    with pytest.raises(Refused):
        attribute_scores(READ, wanted)


def test_confusion_counts_rows_wanted_and_columns_read() -> None:
    table = confusion(READ, WANTED, "garment", ["dress", "coat"])
    assert table == {"names": ["dress", "coat", "unclear"], "counts": [[0, 0, 1], [1, 2, 0], [0, 0, 0]]}
    assert confusion(READ, WANTED, "colour") == {"names": ["blue", "red"], "counts": [[2, 0], [0, 2]]}


def test_confusion_keeps_names_that_were_not_listed() -> None:
    assert confusion(READ, WANTED, "garment", ["dress"])["names"] == ["dress", "coat", "unclear"]


def test_psnr_of_a_known_error() -> None:
    a = torch.zeros(2, 3, 4, 8, 8)
    b = a.clone()
    b[0] += 0.02  # a hundredth of the span of 2: 40 dB
    assert psnr(a, b)[0] == pytest.approx(40, abs=1e-4)
    assert math.isinf(psnr(a, b)[1])
    with pytest.raises(Refused):
        psnr(a, b[:1])


def test_the_table_has_a_row_for_each_group_and_wanted_attribute() -> None:
    groups = [
        Scored("real", "trained", None, READ, WANTED),
        Scored("generated", "held-out", "label", READ, {"garment": WANTED["garment"]}),
    ]
    rows = score_table(groups)
    keys = ("clips", "combinations", "condition", "attribute", "correct")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("real", "trained", None, "garment", 2),
        ("real", "trained", None, "colour", 4),
        ("generated", "held-out", "label", "garment", 2),
    ]
    assert rows[0].keys() == {
        "clips", "combinations", "condition", "attribute", "correct", "count", "accuracy", "low", "high"
    }  # fmt: skip


def test_columns_turns_rows_round() -> None:
    rows = [{"garment": "coat", "colour": "red"}, {"garment": "dress", "colour": "blue"}]
    assert columns(rows, ["colour"]) == {"colour": ["red", "blue"]}
