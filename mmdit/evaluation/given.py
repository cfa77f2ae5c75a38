"""How well given frames are held, and what they show is kept: real clips beside what goes on from their frames.

Shapes: b clips (b, 3, frame, height, width), uint8.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from mmdit.errors import Refused
from mmdit.evaluation.clip_sets import as_floats
from mmdit.evaluation.probe import Probe
from mmdit.evaluation.score import psnr, wilson

PLACES: dict[str, tuple[int, ...]] = {"first": (0,), "last": (-1,), "both": (0, -1)}
"""The frames that are given, by what that is called."""
PARTS = 3
WITHIN = 1.0  # dB of the codec's own


def attributes_of(probe: Probe, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The attributes that the probe reads and that are known of every row."""
    return tuple(name for name in probe.config.names if all(isinstance(row.get(name), str) for row in rows))


def shown(
    probe: Probe, clips: Tensor, wanted: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, list[bool]]]:
    """Whether each clip shows the wanted value of each attribute: {"whole": as a whole, "thirds": in its first, middle
    and last third too}, each {attribute: a value a clip}.

    An attribute that needs several frames is read from the whole clip only, and a clip of fewer than three frames too.
    """
    frames = clips.shape[2]
    parts = clips.tensor_split(PARTS, dim=2) if frames >= PARTS else (clips,)
    readings = [probe.read(part) for part in (clips, *parts)]
    result: dict[str, dict[str, list[bool]]] = {"whole": {}, "thirds": {}}
    for name in names:
        right = [[reading[name][i] == row[name] for i, row in enumerate(wanted)] for reading in readings]
        result["whole"][name] = right[0]
        seen = right[:1] if name in probe.config.motion else right
        result["thirds"][name] = [all(one) for one in zip(*seen, strict=True)]
    return result


def given_psnr(original: Tensor, other: Tensor, kind: str) -> list[float]:
    """PSNR in dB of the given frames of each clip, together."""
    places = list(PLACES[kind])
    return psnr(as_floats(original[:, :, places]), as_floats(other[:, :, places])).tolist()


def compare_given(
    probe: Probe,
    clips: Mapping[str, Tensor],
    wanted: Sequence[Mapping[str, Any]],
    kind: str,
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """One record a clip: {"psnr": {whose: dB}, "shown": {"whole" or "thirds": {whose: {attribute: bool}}}}.

    Args:
        clips: "original", "codec" and "generated", the same clips in the same order.
        wanted: the attributes of each.
        kind: one of `PLACES`.
    """
    values = {whose: given_psnr(clips["original"], part, kind) for whose, part in clips.items() if whose != "original"}
    seen = {whose: shown(probe, part, wanted, names) for whose, part in clips.items()}
    return [
        {
            "psnr": {whose: column[i] for whose, column in values.items()},
            "shown": {
                how: {whose: {name: column[i] for name, column in by[how].items()} for whose, by in seen.items()}
                for how in ("whole", "thirds")
            },
        }
        for i in range(len(wanted))
    ]


def given_figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all records: mean PSNR in dB, the share of clips within 1 dB of the codec's own, and for each
    attribute the share of clips that show it, as a whole and in every third, with its 95 % interval, beside those of
    originals and codec."""
    if not records:
        raise Refused("nothing to compare", expected="at least one clip")
    within = sum(record["psnr"]["generated"] >= record["psnr"]["codec"] - WITHIN for record in records)
    return {
        "clips": len(records),
        "psnr": {whose: fmean(record["psnr"][whose] for record in records) for whose in ("codec", "generated")},
        "within_1_db": within / len(records),
        "shown": {how: _shares([record["shown"][how] for record in records]) for how in ("whole", "thirds")},
    }


def _shares(records: Sequence[Mapping[str, Mapping[str, bool]]]) -> dict[str, Any]:
    """{attribute: {whose: {"correct", "count", "share", "interval"}}}."""
    figures: dict[str, Any] = {}
    for name in records[0]["generated"]:
        figures[name] = {}
        for whose in records[0]:
            count = sum(record[whose][name] for record in records)
            figures[name][whose] = {
                "correct": count, "count": len(records), "share": count / len(records),
                "interval": list(wilson(count, len(records))),
            }  # fmt: skip
    return figures
