"""Starting a new run from weights that there are: what fits is taken, and told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdit.conditioning import load_text_encoder
from mmdit.errors import Refused
from mmdit.latents.index import Store
from mmdit.models import DiT, inflate
from mmdit.training import checkpoint as checkpoints
from mmdit.training.config import RunConfig
from mmdit.training.data_files import check_data_file
from mmdit.training.run import Trainee

LABELS = "y_embedder.embedding_table.weight"
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


def init_from(trainee: Trainee, config: RunConfig, store: Store, text_fingerprint: str | None) -> InitReport:
    """Puts the weights of `config.init_from` into the trainee.

    An image network is inflated for a video one. Label vectors go by the label's name. What belongs to another text
    encoder, or has another shape, stays out.

    Args:
        text_fingerprint: of this run's text encoder where it is frozen.

    Raises:
        Refused: nothing to start from, or no block of the network fits; shapes are told.
    """
    folder, state = _find(config)
    report = InitReport(str(folder))
    source = _load_network(folder)
    weights, image = dict(source.state_dict()), set(source.state_dict())
    layout = trainee.transformer.config.layout
    if source.config.layout == "space" and layout in ("factorized", "alternating"):
        weights = dict(inflate(source, trainee.transformer.config.sample_size[0], layout).state_dict())
    new = trainee.transformer.state_dict()
    if state is not None and LABELS in new and LABELS in weights and state["label_names"]:
        _take_labels(weights, new, state["label_names"], store.labels, report)
    if not _same_text(trainee, folder, state, text_fingerprint):
        for name in [name for name in weights if name.startswith("text_embedder.")]:
            del weights[name]
            report.left_out.append(f"{name} (of another text encoder)")
    elif trainee.text_encoder is not None:
        trainee.text_encoder.load_state_dict(load_text_encoder(folder).state_dict())
        report.loaded += [f"text_encoder.{name}" for name in trainee.text_encoder.state_dict()]
    taken = {name: weight for name, weight in weights.items() if name in new and new[name].shape == weight.shape}
    if not any(name.startswith("blocks.") and name in image for name in taken):
        raise Refused("no block of the network fits the recipe", where=folder, **_shapes(weights, new))
    trainee.transformer.load_state_dict(taken, strict=False)
    kept = layout == source.config.layout
    report.loaded += [name for name in taken if kept or name in image]
    report.inflated += [name for name in taken if not (kept or name in image)]
    report.left_out += [f"{name} {_reason(weights[name], new.get(name))}" for name in weights if name not in taken]
    report.fresh += [name for name in new if name not in taken]
    return report


def _find(config: RunConfig) -> tuple[Path, dict[str, Any] | None]:
    """The folder with the weights, and state.json where it is a checkpoint's."""
    folder = Path(str(config.init_from))
    if (folder / "checkpoints").is_dir():
        folder = checkpoints.find_checkpoint(folder)
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


def _load_network(folder: Path) -> DiT:
    at = folder / "transformer" if (folder / "transformer").is_dir() else folder
    for path in at.glob("*.safetensors"):
        check_data_file(path)
    try:
        return DiT.from_pretrained(at, use_safetensors=True, local_files_only=True)
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
    if not (folder / "text_encoder").is_dir():
        return False
    old = load_text_encoder(folder)
    same_words = old.tokenizer.get_vocab() == trainee.text_encoder.tokenizer.get_vocab()
    return same_words and _all_shapes(old) == _all_shapes(trainee.text_encoder)


def _all_shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _reason(value: Tensor, new: Tensor | None) -> str:
    return "(not in this network)" if new is None else f"({tuple(value.shape)}, here {tuple(new.shape)})"


def _shapes(weights: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, str]:
    """The first block weight of unlike shapes, or what the names are."""
    for name in weights:
        if name.startswith("blocks.") and name in new and weights[name].shape != new[name].shape:
            return {"got": f"{name} {tuple(weights[name].shape)}", "expected": f"{tuple(new[name].shape)}"}
    return {"got": f"blocks with {', '.join(list(weights)[:SHOWN])}", "expected": f"{', '.join(list(new)[:SHOWN])}"}
