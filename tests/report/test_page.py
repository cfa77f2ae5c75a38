from mmdit.report.page import percent, quantity, seconds


def test_shares_are_never_rounded_to_all_or_nothing() -> None:
    assert [percent(x) for x in (0, 1e-5, 0.9921875, 0.99999, 1)] == ["0 %", "0.1 %", "99.2 %", "99.9 %", "100 %"]


def test_times_and_figures_read_well() -> None:
    assert [seconds(x) for x in (0.44, 31.2, 59.7, 280, 7500)] == [
        "0.4 s",
        "31 s",
        "1 min 0 s",
        "4 min 40 s",
        "2 h 5 min",
    ]
    assert quantity({"value": 0.992, "unit": "share"}) == "99.2 %"
    assert quantity({"value": 1800, "unit": "steps"}) == "1,800 steps"
    assert quantity({"value": 31.2468, "unit": "dB"}) == "31.25 dB"
    assert quantity({"value": "sdpa", "unit": None}) == "sdpa"
