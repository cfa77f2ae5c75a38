"""Starting a new run from weights that there are: what fits is taken, and told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdit.conditioning import TextEncoder, load_text_encoder
from mmdit.errors import Refused
from mmdit.models import DiT, Network, inflate
from mmdit.training import checkpoint as checkpoints
from mmdit.training import lora
from mmdit.training.config import RunConfig
from mmdit.training.data_files import check_data_file
from mmdit.training.trainee import Trainee

LABELS = "y_embedder.embedding_table.weight"
BLOCKS = ("blocks.", "unet.")  # before the names of the weights that are not of one input alone
SHOWN = 5  # names in the log


@dataclass
class InitReport:
    """Names of weights by what became of them."""

    source: str
    loaded: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    """Made for the video network out of the image network: they start as nothing."""
    left_out: list[str] = field(default_factory=list)
    """Of the source, with the reason."""
    fresh: list[str] = field(default_factory=list)
    """Of the new network, which start as the recipe says."""

    def text(self) -> str:
        """One line for the log."""
        counts = f"{len(self.loaded)} weights loaded, {len(self.inflated)} inflated, {len(self.left_out)} left out"
        shown = "; ".join(self.left_out[:SHOWN])
        return f"from {self.source}: {counts}, {len(self.fresh)} new" + (f"; left out: {shown}" if shown else "")


def init_from(trainee: Trainee, config: RunConfig, labels: list[str], text_fingerprint: str | None) -> InitReport:
    """Puts the weights of `config.init_from` into the trainee.

    An image network is inflated for a video one. Label vectors go by the label's name. What belongs to another text
    encoder, or has another shape, stays out.

    Args:
        labels: this run's label names.
        text_fingerprint: of this run's text encoder where it is frozen.

    Raises:
        Refused: nothing to start from, or no block of the network fits; shapes are told.
    """
    folder, state = _find(config)
    report = InitReport(str(folder))
    source = _load_network(folder)
    if type(source) is not type(trainee.transformer):
        kinds = {"got": type(source).__name__, "expected": type(trainee.transformer).__name__}
        raise Refused("a network of another kind to start from", where=folder, **kinds, fix="set model.network")
    weights, image = dict(source.state_dict()), set(source.state_dict())
    layout, was = (network.config.get("layout") for network in (trainee.transformer, source))
    if isinstance(source, DiT) and was == "space" and layout in ("factorized", "alternating"):
        weights = dict(inflate(source, trainee.transformer.config.sample_size[0], layout).state_dict())
    new = lora.base_state(trainee.transformer)
    if state is not None and LABELS in new and LABELS in weights and state["label_names"]:
        _take_labels(weights, new, state["label_names"], labels, report)
    if not _same_text(trainee, folder, state, text_fingerprint):
        for name in [name for name in weights if name.startswith("text_embedder.")]:
            del weights[name]
            report.left_out.append(f"{name} (of another text encoder)")
    elif trainee.text_encoder is not None:
        trainee.text_encoder.load_state_dict(load_text_encoder(lora.base_folder(folder)).state_dict())
        report.loaded += [f"text_encoder.{name}" for name in trainee.text_encoder.state_dict()]
    taken = {name: weight for name, weight in weights.items() if name in new and new[name].shape == weight.shape}
    if not any(name.startswith(BLOCKS) and name in image for name in taken):
        raise Refused("no block of the network fits the recipe", where=folder, **_shapes(weights, new))
    for name, weight in taken.items():
        new[name].copy_(weight)
    kept = layout == was
    report.loaded += [name for name in taken if kept or name in image]
    report.inflated += [name for name in taken if not (kept or name in image)]
    report.left_out += [f"{name} {_reason(weights[name], new.get(name))}" for name in weights if name not in taken]
    report.fresh += [name for name in new if name not in taken]
    if config.lora is not None:
        left = {"inflated": report.inflated, "new": report.fresh}
        lora.check_whole(source, trainee.transformer, left, folder)
    return report


def base_text_encoder(config: RunConfig, run_folder: Path) -> TextEncoder | None:
    """The embedded text encoder that a LoRA run has frozen; None where there is none to start from.

    Its words are those of the captions that it was trained on, which need not be those of this run.

    Raises:
        Refused: its sizes are not those of the recipe.
    """
    begun = checkpoints.list_checkpoints(run_folder)
    folder = checkpoints.find_checkpoint(run_folder, fallback=True) if begun else _find(config)[0]
    folder = lora.base_folder(folder)
    if not (folder / "text_encoder").is_dir():
        return None
    encoder = load_text_encoder(folder)
    sizes, text = encoder.model.config, config.conditions.text
    assert text is not None
    was = sizes.d_model, sizes.num_layers, sizes.num_heads, encoder.max_tokens
    if (now := (text.width, text.depth, text.heads, text.max_tokens)) != was:
        raise Refused(
            "a LoRA changes nothing of the text encoder that it is trained on", where=folder,
            got=f"width, depth, heads, max_tokens {now} in conditions.text", expected=was, fix="set them as they were",
        )  # fmt: skip
    return encoder


def _find(config: RunConfig) -> tuple[Path, dict[str, Any] | None]:
    """The folder with the weights, and state.json where it is a checkpoint's."""
    folder = Path(str(config.init_from))
    if (folder / "checkpoints").is_dir():
        try:
            folder = checkpoints.find_checkpoint(folder)
        except Refused as error:  # --fallback is about the run that is trained
            told = str(error).removesuffix(f"; {checkpoints.FALLBACK}")
            raise Refused("no whole checkpoint to start from", where="init_from", got=told,
                          fix="name another of its checkpoints, as RUN/checkpoints/step-...") from None  # fmt: skip
    elif (folder / "state.json").is_file():
        checkpoints.verify_checkpoint(folder)
    else:
        if not folder.is_dir():
            raise Refused(
                "nothing to start from", where="init_from", got=folder,
                expected="a run, a checkpoint, a pipeline folder or a network's folder",
            )  # fmt: skip
        return folder, None
    return folder / ("ema" if config.init_weights == "ema" else "."), checkpoints.read_state(folder)


def _load_network(folder: Path) -> Network:
    at = folder / "transformer" if (folder / "transformer").is_dir() else folder
    for path in at.glob("*.safetensors"):
        check_data_file(path)
    try:
        return lora.load_network(folder)
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused("no network of mmdit to start from", where=at, got=first,
                      fix="bring other networks in with `mmdit convert`") from error  # fmt: skip


def _take_labels(
    weights: dict[str, Tensor], new: dict[str, Tensor], old_names: list[str], names: list[str], report: InitReport
) -> None:
    """Rows of the label table by name; labels that are new keep their fresh rows. The null label comes last."""
    old, table = weights[LABELS], new[LABELS].clone()
    if old.shape[1] != table.shape[1]:
        return
    for row, name in enumerate(names):
        if name in old_names:
            table[row] = old[old_names.index(name)]
        else:
            report.fresh.append(f"{LABELS} of label {name!r}")
    table[-1] = old[-1]
    weights[LABELS] = table
    report.left_out += [f"{LABELS} of label {name!r}" for name in old_names if name not in names]


def _same_text(trainee: Trainee, folder: Path, state: dict[str, Any] | None, fingerprint: str | None) -> bool:
    """Whether the source's text vectors mean what this run's do; true too where neither run has text."""
    if trainee.text_encoder is None:
        return fingerprint is None or (state is not None and state.get("text_encoder_fingerprint") == fingerprint)
    if not (lora.base_folder(folder) / "text_encoder").is_dir():
        return False
    old = load_text_encoder(lora.base_folder(folder))
    same_words = old.tokenizer.get_vocab() == trainee.text_encoder.tokenizer.get_vocab()
    return same_words and _all_shapes(old) == _all_shapes(trainee.text_encoder)


def _all_shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _reason(value: Tensor, new: Tensor | None) -> str:
    return "(not in this network)" if new is None else f"({tuple(value.shape)}, here {tuple(new.shape)})"


def _shapes(weights: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, str]:
    """The first block weight of unlike shapes, or what the names are."""
    for name in weights:
        if name.startswith(BLOCKS) and name in new and weights[name].shape != new[name].shape:
            return {"got": f"{name} {tuple(weights[name].shape)}", "expected": f"{tuple(new[name].shape)}"}
    return {"got": f"blocks with {', '.join(list(weights)[:SHOWN])}", "expected": f"{', '.join(list(new)[:SHOWN])}"}
