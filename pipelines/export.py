"""A pipeline folder to give away: weights, a model card, and the file by which plain diffusers loads it."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from mmdit import __version__, files
from mmdit.conditioning.text import quiet
from mmdit.errors import Refused, Stopped
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.loading import Source, call_facts
from mmdit.pipelines.request import pair_conditions
from mmdit.pipelines.wishes import Sampling, Wish, grant

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EXAMPLES = 4  # clips in the card
CARD = "README.md"


@dataclass(frozen=True)
class Card:
    """What the model card is to say beside what the run tells."""

    name: str
    """Of the model: a repository of the hub, or the folder's."""
    licence: str | None = None
    """Of the weights, as the hub writes it (apache-2.0); None is to be filled in."""
    examples: tuple[str, ...] = ()
    """Prompts, or labels for a network without text, that clips are made of; with none, the run's latest samples."""


def check_card(card: Card, source: Source) -> None:
    """Refused for a licence that is no name of one, and for examples that the model cannot make."""
    if card.licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", card.licence):
        raise Refused(
            "not a licence as the hub writes it", where="--licence", got=repr(card.licence),
            expected="one like apache-2.0, cc-by-nc-4.0 or other",
        )  # fmt: skip
    if card.examples:
        conditions = pair_conditions(
            card.examples if source.has_text else None,
            None if source.has_text else card.examples,
            labels=source.labels,
            has_text=source.has_text,
        )
        source.null_conditions.check(_sampling(source).guidance, conditions, [""])


def _sampling(source: Source) -> Sampling:
    """The model's own, as in `mmdit generate`."""
    own, unsaid = source.sampling, source.null_conditions.default_guidance()
    return Sampling(steps=own.steps, guidance=unsaid if own.guidance is None else own.guidance)


def write_folder(pipeline: ClipPipeline, source: Source, out: Path, dtype: str, card: Card | None = None) -> None:
    """Writes the new folder `out`: what `ClipPipeline.from_pretrained` and plain diffusers load, and a model card.

    The network and the text encoder are written as `dtype`; the codec stays as it is, since other weights would be
    another codec. What the card says of recipe, data and figures comes from the run that `source` lies in.
    """
    card = card or Card(out.name)
    if dtype != "float32":
        for part in (pipeline.transformer, pipeline.text_encoder):
            if part is not None:
                torch.nn.Module.to(part, DTYPES[dtype])  # diffusers' own warns of parts that it would have to keep
        pipeline.register_to_config(origin={**(pipeline.config.origin or source.origin), "dtype": dtype})
    run = None if source.state is None else source.folder.parent.parent
    with files.new_folder(out) as folder:
        with quiet():
            pipeline.save_pretrained(folder)
        _forget_places(folder)
        if card.examples:
            examples = _make_examples(pipeline, source, card.examples, folder)
        else:
            examples = _copy_examples(run, folder) if run else []
        files.write_text(folder / CARD, model_card(pipeline, card, run, source.state, examples))


def _forget_places(folder: Path) -> None:
    """Takes out of the configs where on this machine the weights lay."""
    for path in folder.rglob("*.json"):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict) and value.pop("_name_or_path", None) is not None:
            files.write_json(path, value)


def push(folder: Path, name: str) -> str:
    """Uploads the folder to a private model repository of the hub, which is made if there is none; returns its address.

    Raises Stopped where the hub does not take it; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="mmdit", library_version=__version__)
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"mmdit {__version__}")
    except (OSError, ValueError, RuntimeError) as error:  # the client's own errors are such
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Stopped("the upload failed", where=name, got=reason, fix=f"{folder} is whole: push it again") from error
    return str(address)


def check_push(name: str) -> None:
    """Refused for a name that no repository of the hub can have."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        got = (str(error).splitlines() or [name])[0]
        raise Refused("not a repository's name", where="--push", got=got, expected="OWNER/NAME") from None


def model_card(
    pipeline: ClipPipeline, card: Card, run: Path | None, state: dict[str, Any] | None, examples: list[tuple[str, str]]
) -> str:
    """The card as Markdown with the hub's header. `examples` are (file, what it shows)."""
    frames, height, width = pipeline.default_size()
    ask = json.dumps(examples[0][1] if examples else "...") if pipeline.has_text else "label=0"
    name = json.dumps(card.name)
    parts = [
        _header(card.licence, examples),
        f"# {card.name}\n\nClips of {frames} frames of {height}x{width} pixels (height x width), made by mmdit "
        f"{__version__}; {sum(weight.numel() for weight in pipeline.transformer.parameters()):,} weights in the "
        f"network, in {str(pipeline.transformer.dtype).removeprefix('torch.')}.\n",
        "## Use\n\n```python\n# pip install mmdit-video\nfrom diffusers import DiffusionPipeline\n\n"
        f"pipeline = DiffusionPipeline.from_pretrained({name}, custom_pipeline={name}, trust_remote_code=True)\n"
        f"frames = pipeline({ask}).frames[0]\n```\n",
    ]
    if examples:
        listed = "\n".join(f"- [{shows}]({file})" for file, shows in examples)
        parts.append(f"## Examples\n\n<Gallery />\n\n{listed}\n")
    if state is not None:
        parts.append(_data(state))
    if run is not None:
        parts += [_figures(run), _recipe(run)]
    licence = card.licence or "To be filled in: that of the weights, and what the training clips allow"
    parts.append(f"## Licence\n\n{licence}.\n")
    return "\n".join(part for part in parts if part)


def _header(licence: str | None, examples: list[tuple[str, str]]) -> str:
    """What the hub reads; `widget` is what it shows as a gallery."""
    about: dict[str, Any] = {
        "license": licence or "unknown",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-video",
        "tags": ["mmdit", "diffusion-transformer", "video"],
    }
    if examples:
        about["widget"] = [{"text": shows, "output": {"url": file}} for file, shows in examples]
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n"


def _data(state: dict[str, Any]) -> str:
    """What it was trained on, as the checkpoint's state tells."""
    rows = state.get("rows") or {}
    count = rows.get("count", state.get("store_rows")) if isinstance(rows, dict) else None
    lines = [f"- trained for {state['step']} steps" + (f" on {count} clips" if count else "")]
    lines += [f"- labels: {', '.join(state['label_names'])}"] if state["label_names"] else []
    lines += [f"- text encoder: {_shown(state['text_encoder'])}"] if state["text_encoder"] else []
    lines += [f"- codec: {_shown(state['codec']['name'])}, fingerprint {state['codec']['fingerprint'][:16]}"]
    return "## Data\n\n" + "\n".join(lines) + "\n"


def _figures(run: Path) -> str:
    """First and last of each figure of metrics.jsonl."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return ""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip().endswith("}")]
    lines = ["| figure | first | last |", "|---|---|---|"]
    for key in ("loss", "val_loss", "clips_per_s"):
        said = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
        if said:
            (first, at), (last, then) = said[0], said[-1]
            lines.append(f"| {key} | {at:.4g} (step {first}) | {then:.4g} (step {last}) |")
    return "## Figures\n\n" + "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _recipe(run: Path) -> str:
    path = run / "config.yaml"
    if not path.is_file():
        return ""
    recipe = yaml.safe_dump(_shown(yaml.safe_load(path.read_text(encoding="utf-8"))), sort_keys=False)
    return f"## Recipe\n\n```yaml\n{recipe}```\n"


def _shown(value: Any) -> Any:
    """A value without the folders of this machine: of an absolute path, its last part."""
    if isinstance(value, dict):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _copy_examples(run: Path, folder: Path) -> list[tuple[str, str]]:
    """Copies some of the run's latest samples into examples/; (file, what it shows) of each."""
    latest = max((run / "samples").glob("step-*"), default=None)
    if latest is None or not (latest / "samples.json").is_file():
        return []
    listed = json.loads((latest / "samples.json").read_text(encoding="utf-8"))[:EXAMPLES]
    (folder / "examples").mkdir()
    for row in listed:
        shutil.copyfile(latest / row["file"], folder / "examples" / row["file"])
    return [(f"examples/{row['file']}", row.get("prompt") or row.get("label") or "clip") for row in listed]


def _make_examples(
    pipeline: ClipPipeline, source: Source, asked: tuple[str, ...], folder: Path
) -> list[tuple[str, str]]:
    """Makes a clip of each, as `mmdit generate` does, into examples/; (file, what it shows) of each."""
    ending = "png" if pipeline.default_size()[0] == 1 else "mp4"
    names = [f"examples/{number:02d}.{ending}" for number in range(len(asked))]
    text = pipeline.has_text
    wishes = [Wish(n, one if text else None, None if text else one) for n, one in zip(names, asked, strict=True)]
    grant(pipeline, wishes, folder, sampling=_sampling(source), metadata=call_facts(source, pipeline), batch_size=1)
    return list(zip(names, asked, strict=True))
