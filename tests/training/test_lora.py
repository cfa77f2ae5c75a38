"""Fine-tuning by LoRA: only adapters are trained, saved, averaged and taken up; generating and init_from merge them."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import exit_code
from runs import flip, sign, state_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmdit.conditioning import load_text_encoder
from mmdit.errors import Refused
from mmdit.models import DiT, create_model
from mmdit.pipelines.export import write_folder
from mmdit.pipelines.loading import find_source, load_pipeline
from mmdit.training import lora
from mmdit.training.checkpoint import find_checkpoint, verify_checkpoint
from mmdit.training.loop import train
from mmdit.training.processes import make_accelerator
from mmdit.training.resume import resume
from mmdit.training.run import Run, begin_run
from mmdit.training.verify import verify_run

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def base(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network does something: all of its weights are trained, and none is zero any more."""
    folder = tmp_path_factory.mktemp("base")
    train(recipe(steps=20, validate_every=20, checkpoint_every=20, data__image_share=0.0), folder)
    return folder


@pytest.fixture
def tuned(recipe: Any, base: Path) -> Any:
    def make(**changes: Any) -> Any:
        settings = {"init_from": str(base), "lora": {"rank": 2}, "optimizer__muon_lr": None, "optimizer__lr": 1e-2}
        return recipe(**settings | changes)

    return make


def begin(config: Any, folder: Path) -> Run:
    run = begin_run(config, folder, make_accelerator(config))
    resume(run)
    return run


def say(network: DiT) -> torch.Tensor:
    """What a network says of clips that are always the same."""
    random = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 3, 4, 4, generator=random), torch.randn(2, 16, generator=random)
    with torch.no_grad():
        return network.eval()(latents, torch.tensor([300.0, 700.0]), labels=torch.tensor([0, 1]), text=text)


class Interrupted(Exception):
    pass


def stop(step: int, *_: object) -> None:
    if step in (1, 3):
        raise Interrupted


def test_only_adapters_are_trained_averaged_and_saved(tuned: Any, base: Path, tmp_path: Path) -> None:
    run = begin(tuned(), tmp_path / "begun")
    trained = {name for name, weight in run.trainee.named_parameters() if weight.requires_grad}
    assert trained and all(".lora_" in name for name in trained) and set(run.ema.averages) == trained
    assert sum(len(group["params"]) for o in run.optimizers for group in o.param_groups) == len(trained)
    places = {name.split(".lora_")[0].removeprefix("transformer.blocks.1.") for name in trained if ".1." in name}
    assert {f"{a}.{b}" for a in ("attn", "time_attn") for b in ("qkv", "proj")} | {"mlp.fc1", "mlp.fc2"} == {
        place.removeprefix("transformer.blocks.0.") for place in places
    }

    train(tuned(), tmp_path / "run")
    checkpoint, source = find_checkpoint(tmp_path / "run"), find_checkpoint(base) / "ema"
    verify_checkpoint(checkpoint)
    for name in (WEIGHTS, TEXT):  # frozen: as they were, and there once
        was, now = load_file(source / name), load_file(checkpoint / "base" / name)
        assert was.keys() == now.keys() and all(torch.equal(was[key], now[key]) for key in was)
        assert len(list(checkpoint.rglob(Path(name).name))) == 1
    raw, average = (load_file(checkpoint / at / lora.FILE) for at in (".", "ema"))
    assert raw.keys() == average.keys() and any(not torch.equal(raw[key], average[key]) for key in raw)
    assert any(value.abs().sum() > 0 for key, value in raw.items() if "lora_B" in key)
    assert {key.split(".", 2)[1] for key in load_file(checkpoint / "optimizer.safetensors")} == {
        str(number) for number in range(len(raw))
    }


def test_interrupted_it_ends_as_if_never_and_is_verified(tuned: Any, tmp_path: Path) -> None:
    train(tuned(), tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(tuned(), tmp_path / "parts", progress=stop)
    train(tuned(), tmp_path / "parts")
    assert state_of(tmp_path / "whole") == state_of(tmp_path / "parts")
    assert verify_run(tmp_path / "whole", 2).damages == []
    flip(find_checkpoint(tmp_path / "whole") / "base" / WEIGHTS)
    with pytest.raises(Refused, match="a file of the checkpoint is damaged, in .*base"):
        train(tuned(), tmp_path / "whole")


def test_the_adapters_load_by_diffusers_and_merge(tuned: Any, tmp_path: Path) -> None:
    """The file alone on the base, the merged network, and the network in training say the same."""
    config = tuned(lora={"rank": 2, "alpha": 6.0})
    train(config, tmp_path / "run")
    checkpoint = find_checkpoint(tmp_path / "run")
    run = begin(config, tmp_path / "run")
    network = DiT.from_pretrained(checkpoint / "base" / "transformer")
    plain = say(network)
    network.load_lora_adapter(str(checkpoint), weight_name=lora.FILE)
    expected = say(run.trainee.transformer)
    assert not torch.allclose(plain, expected, atol=1e-3)
    torch.testing.assert_close(say(network), expected, rtol=0, atol=1e-5)
    merged = lora.load_network(checkpoint)
    assert merged.state_dict().keys() == load_file(checkpoint / "base" / WEIGHTS).keys()
    torch.testing.assert_close(say(merged), expected, rtol=0, atol=1e-5)
    with run.ema.in_place_of_weights(run.trainee):
        average = say(run.trainee.transformer)
    assert not torch.allclose(average, expected, atol=1e-4)
    torch.testing.assert_close(say(lora.load_network(checkpoint / "ema")), average, rtol=0, atol=1e-5)

    kept = merged.state_dict()
    assert exit_code("convert", checkpoint, tmp_path / "converted") == 0
    converted = DiT.from_pretrained(tmp_path / "converted").state_dict()
    assert converted.keys() == kept.keys() and all(torch.equal(converted[name], kept[name]) for name in kept)
    small, large = ((checkpoint / name).stat().st_size for name in (lora.FILE, f"base/{WEIGHTS}"))
    assert small < large / 4
    with safe_open(checkpoint / lora.FILE, "pt") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
        assert all(name.startswith("transformer.") for name in file.keys())  # noqa: SIM118
    assert (about["transformer.r"], about["transformer.lora_alpha"]) == (2, 6.0)


def test_a_pipeline_and_a_new_run_take_the_merged_weights(tuned: Any, recipe: Any, tmp_path: Path) -> None:
    train(tuned(), tmp_path / "run")
    checkpoint = find_checkpoint(tmp_path / "run")
    merged = lora.load_network(checkpoint / "ema").state_dict()
    new = begin(recipe(init_from=str(tmp_path / "run")), tmp_path / "new")
    state = new.trainee.state_dict()
    assert all(torch.equal(state[f"transformer.{name}"], value) for name, value in merged.items())
    frozen = load_text_encoder(checkpoint / "base").state_dict()
    assert all(torch.equal(state[f"text_encoder.{name}"], value) for name, value in frozen.items())
    assert json.loads((tmp_path / "new" / "init.json").read_text())["fresh"] == []
    again = begin(tuned(init_from=str(tmp_path / "run")), tmp_path / "again")
    found = lora.base_state(again.trainee.transformer)
    assert found.keys() == merged.keys() and all(torch.equal(found[name], value) for name, value in merged.items())


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_generating_takes_the_merged_weights(
    tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    import tiny

    codec = tiny.make_codec()
    monkeypatch.setattr("mmdit.pipelines.loading.load_trained_codec", lambda *_: codec)
    train(tuned(), tmp_path / "run")
    at = find_checkpoint(tmp_path / "run") / ("ema" if weights == "ema" else ".")
    pipeline = load_pipeline(tmp_path / "run", weights=weights)
    assert torch.equal(say(pipeline.transformer), say(lora.load_network(at)))
    assert pipeline.text_encoder is not None
    write_folder(pipeline, find_source(tmp_path / "run"), tmp_path / "exported", "float32")
    exported = load_pipeline(tmp_path / "exported").transformer.state_dict()
    merged = lora.load_network(at).state_dict()
    assert exported.keys() == merged.keys()
    assert all(torch.equal(exported[name], value) for name, value in merged.items())


def test_the_loss_falls_below_that_of_the_base(tuned: Any, base: Path, tmp_path: Path) -> None:
    """At the same noise and times. The base is spoilt, so that there is something to learn in so few steps."""
    shutil.copytree(base, tmp_path / "base")
    checkpoint = find_checkpoint(tmp_path / "base")
    weights = load_file(checkpoint / "ema" / WEIGHTS)
    weights["final_layer.linear.weight"] *= -5
    save_file(weights, checkpoint / "ema" / WEIGHTS, {"format": "pt"})
    sign(checkpoint)
    changes = {"init_from": str(tmp_path / "base"), "data__image_share": 0.0, "steps": 30, "validate_every": 30}
    losses = []
    for name, lr in (("untrained", 1e-9), ("tuned", 1e-2)):
        train(tuned(**changes, optimizer__lr=lr), tmp_path / name)
        losses.append(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"])
    assert losses[1] < 0.9 * losses[0], losses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": None}, "lora without init_from; set init_from=RUN"),
        ({"optimizer__muon_lr": 0.1}, "nothing reads muon_lr, got muon_lr 0.1 with lora"),
        ({"lora": {"targets": ["time_attn.qvk"]}}, r"lora.targets, got 'time_attn.qvk'; did you mean time_attn.qkv\?"),
        ({"lora": {"targets": ["x_embedder.proj"]}}, "no linear layer of the network has this name"),
        ({"model__positions": "sincos"}, "got positions=sincos, expected positions=rotary"),
        ({"model__layout": "joint"}, "got layout=joint, expected layout=factorized"),
        ({"conditions__text__depth": 2}, r"got width, depth, heads, max_tokens \(16, 2, 2, 24\)"),
        ({"lora": {"rank": 0}}, "lora.rank"),
        ({"lora": {"targets": []}}, "lora.targets"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_step(
    tuned: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=message):
        train(tuned(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_base_that_is_not_whole_is_refused(recipe: Any, tuned: Any, tmp_path: Path) -> None:
    train(recipe(steps=1, model__layout="space"), tmp_path / "image")
    with pytest.raises(Refused, match=r"LoRA .*got layout=factorized, expected layout=space"):
        train(tuned(init_from=str(tmp_path / "image")), tmp_path / "run")
    alone = find_checkpoint(tmp_path / "image") / "transformer"
    with pytest.raises(Refused, match="needs all weights of .* new ones, such as text_embedder.*lora=null"):
        train(tuned(init_from=str(alone), model__layout="space"), tmp_path / "run")


def test_without_peft_it_is_refused(tuned: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tuned(), tmp_path / "run")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else find(name, *more))
    for use in (lambda: train(tuned(), tmp_path / "new"), lambda: lora.load_network(find_checkpoint(tmp_path / "run"))):
        with pytest.raises(Refused, match=r'LoRA needs PEFT.*pip install "mmdit-video\[lora\]"'):
            use()


def test_captions_of_other_words_keep_the_words_of_the_base(tuned: Any, base: Path, tmp_path: Path) -> None:
    """Made of this run's captions, the vocabulary would be numbered anew, and the frozen vectors mean other words."""
    shutil.copytree(base, tmp_path / "base")
    checkpoint = find_checkpoint(tmp_path / "base")
    for path in checkpoint.rglob("tokenizer.json"):
        path.write_text(path.read_text().replace('"coat"', '"cape"').replace('"red"', '"rot"'))
    sign(checkpoint)
    words = load_text_encoder(checkpoint).tokenizer.get_vocab()
    assert words != load_text_encoder(find_checkpoint(base)).tokenizer.get_vocab()
    config = tuned(init_from=str(tmp_path / "base"), steps=1)
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "base")  # read once, when the run begins
    run = begin(config, tmp_path / "run")
    assert run.trainee.text_encoder is not None and run.trainee.text_encoder.tokenizer.get_vocab() == words


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_equal_the_large_batch(tuned: Any, tmp_path: Path, size: int) -> None:
    changes = {"optimizer__clip_norm": 0.01, "optimizer__lr": 1e-4}  # clipped hard: part by part it would be another
    train(tuned(**changes), tmp_path / "whole")
    train(tuned(data__micro_batch=size, **changes), tmp_path / "parts")
    whole, parts = (load_file(find_checkpoint(tmp_path / name) / lora.FILE) for name in ("whole", "parts"))
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", [{"rank": 3}, {"rank": 2, "alpha": 4.0}, {"rank": 2, "targets": ["attn.qkv"]}])
def test_each_key_changes_what_is_trained(tuned: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    train(tuned(steps=2), tmp_path / "plain")
    train(tuned(steps=2, lora=change), tmp_path / "changed")
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("plain", "changed")]
    one, other = (json.loads(line)["grad_norm"] for line in logs)
    assert one != other


def test_targets_are_linear_layers_whose_names_end_so() -> None:
    network = create_model("tiny", sample_size=(3, 4, 4), in_channels=4, num_classes=3, text_dim=8, layout="factorized")
    assert lora.find_targets(network, ("qkv",)) == [
        f"blocks.{number}.{part}.qkv" for number in range(network.config.depth) for part in ("attn", "time_attn")
    ]
    assert lora.find_targets(network, ("blocks.0.mlp.fc1", "final_layer.linear")) == [
        "blocks.0.mlp.fc1", "final_layer.linear",
    ]  # fmt: skip
    assert all("x_embedder" not in name for name in lora.find_targets(network, ("proj",)))
