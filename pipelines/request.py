"""What a user asks for, checked before any work: conditions, numbers, sizes."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmdit.conditioning import Labels, check_prompts
from mmdit.errors import Refused

MAX_RESULT_BYTES = 4 << 30  # decoded clips of one call, in memory as float32
PRECISIONS = ("float32", "bfloat16")
MAX_SEED = 2**63 - 1
MAX_STEPS = 10_000


@dataclass(frozen=True)
class Condition:
    """What one clip shall show: a prompt ("" for none) and a label id (None for none)."""

    prompt: str
    label: int | None


def pair_conditions(
    prompt: str | Sequence[str] | None, label: Any, *, labels: Labels | None, has_text: bool
) -> list[Condition]:
    """One condition an entry of `prompt` and `label`; a single one goes with every entry of the other.

    Args:
        prompt: one or several; None for none.
        label: names or numbers, one or several; None for none.
        labels: those that the model knows, None where it has no label input.
        has_text: whether the model reads prompts.

    Raises:
        Refused: an input the model lacks, an unknown label, an empty list, lists of unlike length.
    """
    prompts = None if prompt is None else check_prompts(prompt)
    ids = None if label is None else label if isinstance(label, list | tuple) else [label]
    if prompts is not None and not has_text:
        raise Refused("this model reads no prompts", got="a prompt", expected=_takes(labels, has_text))
    if ids is not None and labels is None:
        raise Refused("this model has no labels", got="a label", expected=_takes(labels, has_text))
    if prompts is None and ids is None:
        if has_text or labels is not None:
            raise Refused("nothing to generate from", got="no prompt and no label", expected=_takes(labels, has_text))
        return [Condition("", None)]
    for name, values in (("prompts", prompts), ("labels", ids)):
        if values is not None and len(values) == 0:
            raise Refused(f"the list of {name} is empty", expected="at least one")
    count = max(len(prompts or ()), len(ids or ()))
    prompts = prompts if prompts is not None else [""]
    known = labels.ids(ids) if labels is not None and ids is not None else [None]
    for values in (prompts, known):
        if len(values) not in (1, count):
            got = f"{len(prompts)} prompts and {len(known)} labels"
            raise Refused("the lists are of unlike length", got=got, expected="one each, or one for all")
    return [Condition(prompts[i if len(prompts) > 1 else 0], known[i if len(known) > 1 else 0]) for i in range(count)]


def check_sampling(
    *,
    steps: int,
    guidance: float,
    seed: int,
    first_index: int,
    clips_each: int,
    batch_size: int,
    precision: str,
) -> None:
    """Refused for what no sampling can be done with."""
    for name, value, least in (
        ("number of steps", steps, 1),
        ("number of clips a prompt", clips_each, 1),
        ("batch size", batch_size, 1),
        ("seed", seed, 0),
        ("first index", first_index, 0),
    ):
        _check_count(name, value, least)
    if steps > MAX_STEPS:
        raise Refused("the number of steps is out of range", got=steps, expected=f"1 to {MAX_STEPS}")
    if not isinstance(guidance, int | float) or not 0 <= guidance < math.inf:
        raise Refused("the guidance scale is out of range", got=repr(guidance),
                      expected="a number of 0 or more (1 is without guidance)")  # fmt: skip
    check_choice("precision", precision, PRECISIONS)


def check_negatives(negative: str | Sequence[str] | None, prompts: int, *, has_text: bool) -> list[str]:
    """A negative prompt for each prompt, "" where there is none.

    Raises Refused for one that the model cannot read, and for another number of them than one, or one a prompt.
    """
    if negative is None:
        return [""] * prompts
    if not has_text:
        raise Refused("this model reads no prompts", got="a negative prompt", fix="leave it out")
    negatives = check_prompts(negative)
    if len(negatives) not in (1, prompts):
        raise Refused("not a negative prompt a prompt", got=len(negatives), expected=f"1 or {prompts}")
    return negatives * prompts if len(negatives) == 1 else negatives


def place_clips(seed: int | Sequence[int], first_index: int | Sequence[int], clips: int) -> list[tuple[int, int]]:
    """The (seed, index) that each clip's noise is drawn from; Refused for another number of them than clips."""
    seeds = _one_each("seed", seed, clips, step=0)
    return list(zip(seeds, _one_each("first index", first_index, clips, step=1), strict=True))


def _one_each(name: str, value: Any, clips: int, step: int) -> list[int]:
    """A whole number for each clip: of as many, or of the first clip's and what it grows by from clip to clip."""
    first = _as_int(value)
    if type(first) is int:
        values = [first + step * i for i in range(clips)]
    else:
        many = isinstance(value, Iterable) and not isinstance(value, str)
        values = [_as_int(one) for one in value] if many else [value] * clips
    if len(values) != clips:
        raise Refused(f"not one {name} a clip", got=len(values), expected=f"1 or {clips}")
    for one in values:
        _check_count(name, one, 0)
    return values


def _as_int(value: Any) -> Any:
    """Whole numbers of numpy and torch as Python's own, which go into files; what is none as it is."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_SEED:
        raise Refused(f"the {name} is out of range", got=repr(value), expected=f"a whole number of {least} or more")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refused for a value that is not among those known."""
    if value not in known:
        raise Refused(f"unknown {name}", got=repr(value), expected=f"one of {', '.join(known)}")


def check_image_network(config: Mapping[str, Any], frames: int | None) -> None:
    """Refused for more than one frame of a network, by its config, that was made for images: it has no time."""
    if config.get("layout") == "space" and config["sample_size"][0] == 1 and frames not in (None, 1):
        raise Refused("this model makes images", got=f"{frames} frames", expected="1")


def check_size(
    codec: Any, patch_size: Sequence[int], *, frames: int, height: int, width: int, clips: int
) -> tuple[int, int, int]:
    """The latent grid (frames, height, width) of clips of this size.

    Raises Refused, naming the nearest size, where codec and patches do not allow it, and for more than fits in memory.
    """
    for name, value in (("number of frames", frames), ("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Refused(f"the {name} is out of range", got=repr(value), expected="a whole number of 1 or more")
    steps = codec.space_factor * patch_size[1], codec.space_factor * patch_size[2]
    if height % steps[0] or width % steps[1]:
        nearest = [max(step, round(n / step) * step) for n, step in zip((height, width), steps, strict=True)]
        raise Refused(
            "the model cannot make this size",
            got=f"{height}x{width} (height x width)",
            expected=f"multiples of {steps[0]}x{steps[1]}",
            fix=f"the nearest is {nearest[0]}x{nearest[1]}",
        )
    asked = 4 * 3 * clips * frames * height * width
    if asked > MAX_RESULT_BYTES:
        raise Refused(
            "too much for one call",
            got=f"{clips} clips of {frames} frames of {height}x{width} ({asked / 2**30:.1f} GiB)",
            expected=f"at most {MAX_RESULT_BYTES >> 30} GiB",
            fix="ask for fewer or smaller clips at a time",
        )
    if not _frames_allowed(codec, patch_size[0], frames, height, width):
        around = (range(frames - 1, max(0, frames - 64), -1), range(frames + 1, frames + 65))
        near = [
            next((n for n in side if _frames_allowed(codec, patch_size[0], n, height, width)), None) for side in around
        ]
        fix = "the nearest: " + " and ".join(str(n) for n in near if n is not None)
        raise Refused("the model cannot make so many frames", got=frames, expected="what the codec allows", fix=fix)
    return codec.latent_size((frames, height, width))


def _frames_allowed(codec: Any, patch_frames: int, frames: int, height: int, width: int) -> bool:
    if codec.nearest_frames(frames) != frames:
        return False
    return codec.latent_size((frames, height, width))[0] % patch_frames == 0


def _takes(labels: Labels | None, has_text: bool) -> str:
    inputs = [*(["a prompt"] if has_text else []), *(["a label"] if labels is not None else [])]
    return " or ".join(inputs) or "neither prompt nor label"
