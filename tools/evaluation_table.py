"""The result of `mmdit evaluate` as lines to read."""

from typing import Any

GOALS = {"colour": "goal: 95 %"}
GIVEN = {"first": "first frame", "last": "last frame", "both": "first and last frame"}


def table(result: dict[str, Any]) -> list[str]:
    """The lines; every figure with its number of samples, and a distance with its bias at that number."""
    figures = result["figures"]
    if result["given"]:
        return [_head(result), *_given(result["given"], figures["given"], result["protocol"]["given_split"])]
    lines = [_head(result), f"{figures['counts']['generated']} clips against {figures['counts']['real']} real ones"]
    for network, values in figures["distances"].items():
        lines += _distances(network, values)
    lines += _means(figures["means"])
    lines += _attributes(figures.get("attributes") or {})
    if codec := figures.get("codec"):
        alike = "" if codec["ssim"] is None else f", SSIM {codec['ssim']:.4f}"
        lines.append(f"codec, {codec['clips']} real clips: PSNR {codec['psnr']:.2f} dB{alike}")
    return lines


def _head(result: dict[str, Any]) -> str:
    rules, model = result["protocol"], result["model"]
    if model is None:
        return f"protocol {rules['name']}, seed {rules['seed']}: the clips of {result['clips']['place']}"
    how = f"{rules['steps']} steps of {model['sampler']}, guidance {rules['guidance']:g}"
    return f"protocol {rules['name']}, seed {rules['seed']}: {how}"


def _distances(network: str, values: dict[str, Any]) -> list[str]:
    samples = values["samples"]
    few = min(samples.values()) <= values["features"]
    lines = [
        f"by {network}, {values['features']} features, {samples['generated']} samples against {samples['real']}"
        + (" (no more samples than features: the extrapolation is rough)" if few else ""),
        f"  Fréchet distance    {_number(values['frechet'])}   extrapolated to endlessly many samples "
        f"{_number(values['frechet_extrapolated'])}, so the bias at {samples['generated']} is "
        f"{_number(values['frechet_bias'])}",
        f"  KID                 {_number(values['kid'])} ± {_number(values['kid_deviation'])} "
        f"(subsets of {values['kid_size']})",
    ]
    if values["precision"] is not None:
        lines.append(f"  precision, recall   {values['precision']:.3f}, {values['recall']:.3f}")
    return lines


def _number(value: float) -> str:
    return f"{value:.4g}"


def _means(means: dict[str, Any]) -> list[str]:
    says = {"flicker": "flicker (levels of 255)", "drift": "drift from the first frame", "clip_score": "CLIP score"}
    lines = []
    for name, sides in means.items():
        kind, _, network = name.partition(".")
        told = []
        for side, value in sides.items():
            error = "" if value["error"] is None else f" ± {value['error']:.2g}"
            end = f", {value['by_frame'][-1]:.4f} at the last" if "by_frame" in value else ""
            told.append(f"{side} {value['mean']:.4f}{error}{end} ({value['count']} clips)")
        lines.append(f"{says[kind]}{f', by {network}' if network else ''}: {'; '.join(told)}")
    return lines


def _attributes(attributes: dict[str, Any]) -> list[str]:
    lines = [f"{'shows what was asked':24} {'generated':>34} {'real':>34}"] if attributes else []
    for name, shares in attributes.items():
        lines.append(f"{name:24} {_share(shares['generated']):>34} {_share(shares['real']):>34}")
    return lines


def _given(kind: str, figures: dict[str, Any], split: str) -> list[str]:
    psnr = figures["psnr"]
    lines = [
        f"{GIVEN[kind]} given, {figures['clips']} clips of split {split}",
        f"PSNR of what is given: {psnr['generated']:.2f} dB, the codec's own {psnr['codec']:.2f} dB; "
        f"{figures['within_1_db']:.1%} of the clips within 1 dB of it (goal: all)",
    ]
    for how, words in (("whole", "shown by the clip"), ("thirds", "shown in every third")):
        lines.append(f"{words:24} {'generated':>34} {'codec':>34} {'real':>34}")
        for name, shares in figures["shown"][how].items():
            columns = "".join(f" {_share(shares[whose]):>34}" for whose in ("generated", "codec", "original"))
            lines.append(f"{name:24}{columns}{f'  ({GOALS[name]})' if name in GOALS and how == 'whole' else ''}")
    return lines


def _share(part: dict[str, Any]) -> str:
    low, high = part["interval"]
    return f"{part['correct']}/{part['count']} {part['share']:.1%} ({low:.1%} to {high:.1%})"
