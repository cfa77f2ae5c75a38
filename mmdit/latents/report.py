"""What becomes of the clips of an encoding run: told while it goes on, and counted at its end."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmdit.errors import OverBudget, Refused
from mmdit.latents.claims import Claims
from mmdit.latents.plan import Planned, row_of
from mmdit.latents.shards import Recorded

Progress = Callable[[int, int, str], None]
"""Told after each clip: clips done, clips in all, and in words how it goes."""

_LOOK_EVERY = 5.0  # seconds between looks at what other processes have done


@dataclass(frozen=True)
class EncodeReport:
    """What became of every clip of the sources."""

    store: Path
    planned: int
    kept: int
    skipped: int
    reasons: dict[str, int]
    """Kind of fault to number of clips, the commonest first."""
    encoded: int
    """Clips that this call encoded; the others were there before."""
    same_content: int
    """Clips whose span and bytes are those of another one: they share its latent."""
    without_caption: int
    unused: int
    """Latents in the store that no clip of the sources uses any more."""
    psnr: float | None
    """Mean reconstruction PSNR over the sampled clips, in dB."""
    speeds: tuple[float, float, float]
    """Least, median and largest number of source seconds in a second of a clip; 1 is true speed."""
    seconds: float


class TooManySkipped(OverBudget):
    """The store is whole, but more clips were skipped than allowed. `report` has the counts."""

    def __init__(self, report: EncodeReport, allowed: int) -> None:
        self.report = report
        first = next(iter(report.reasons.items()))
        super().__init__(
            "more clips were skipped than the budget allows", where=report.store,
            got=f"{report.skipped} of {report.planned}, most of them ({first[1]}) {first[0]}",
            expected=f"at most {allowed}",
            fix="see quarantine.parquet there, and repair the files or raise --max-skipped",
        )  # fmt: skip


class Teller:
    """Counts the clips that are done and skipped, from what was there before on, and tells `progress`."""

    def __init__(
        self,
        progress: Progress | None,
        plan: Sequence[Planned],
        shards: dict[int, Sequence[Planned]],
        recorded: Recorded,
        claims: Claims,
    ) -> None:
        self.progress, self.claims, self.total = progress, claims, len(plan)
        self.elsewhere = {number: len(part) for number, part in shards.items()}  # shards that others may make
        self.number_of = {planned.id: number for number, part in shards.items() for planned in part}
        before = [recorded.rows.get(planned.id) for planned in plan if planned.id not in self.number_of]
        self.skipped = sum(row is None or row["reason"] is not None for row in before)
        self.before = self.done = len(plan) - len(self.number_of)  # with those whose latent another clip brings
        self.own = 0
        self.video = 0.0  # seconds
        self.began = self.looked = time.monotonic()

    def __call__(self, planned: Planned, was_skipped: bool) -> None:
        """One clip more was done here."""
        self.elsewhere.pop(self.number_of[planned.id], None)
        self.done, self.own, self.skipped = self.done + 1, self.own + 1, self.skipped + was_skipped
        self.video += planned.frames / planned.fps
        self.look()
        if self.progress is not None:
            self.progress(self.done, self.total, self.words())

    def look(self) -> None:
        """Counts what others have done meanwhile."""
        if time.monotonic() - self.looked > _LOOK_EVERY:
            self.looked = time.monotonic()
            for number in [number for number in self.elsewhere if self.claims.is_done(number)]:
                self.done += self.elsewhere.pop(number)

    def words(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = (self.done - self.before) / seconds
        left = math.ceil((self.total - self.done) / rate)
        video = self.video / max(self.own, 1) * rate
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        return f"{rate:.1f} clips/s, {video:.1f} s of video a second, skipped {self.skipped}, left {clock}"


def make_report(
    folder: Path, plan: Sequence[Planned], recorded: Recorded, encoded: int, seconds: float, max_skipped: int | float
) -> EncodeReport:
    """Raises TooManySkipped where more was skipped than allowed."""
    rows = [row_of(planned, recorded.rows) for planned in plan]
    kept = [(planned, row) for planned, row in zip(plan, rows, strict=True) if row["reason"] is None]
    ids = {planned.id for planned in plan if planned.reason is None}
    measured = [row["psnr"] for _, row in kept if row["psnr"] is not None]
    speeds = [row.get("speed") or 1.0 for _, row in kept]
    report = EncodeReport(
        store=folder,
        planned=len(plan),
        kept=len(kept),
        skipped=len(plan) - len(kept),
        reasons=dict(Counter(kind_of(row["reason"]) for row in rows if row["reason"] is not None).most_common()),
        encoded=encoded,
        same_content=sum(planned.reason is None for planned in plan) - len(ids),
        without_caption=sum(planned.clip.caption is None for planned, _ in kept),
        unused=sum(row["reason"] is None and id not in ids for id, row in recorded.rows.items()),
        psnr=float(np.mean(measured)) if measured else None,
        speeds=(min(speeds), float(np.median(speeds)), max(speeds)),
        seconds=seconds,
    )
    allowed = max_skipped if isinstance(max_skipped, int) else math.floor(max_skipped * len(plan))
    if report.skipped > allowed:
        raise TooManySkipped(report, allowed)
    return report


def kind_of(reason: str) -> str:
    """The kind of fault: a reason without its details."""
    return reason.partition(":")[0]


def check_any_kept(reasons: Iterable[str | None], where: Path) -> None:
    """Refused where every clip was skipped, `reasons` being why: that is no store."""
    reasons = list(reasons)
    if None not in reasons:
        (kind, count), *_ = Counter(kind_of(reason) for reason in reasons if reason is not None).most_common(1)
        raise Refused(
            "no usable clip", where=where, got=f"{len(reasons)} skipped, most of them ({count}) {kind}",
            expected="at least one that can be encoded",
        )  # fmt: skip
