"""A U-Net is trained, taken up again, sampled and planned as a DiT is; what does not go with it is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from runs import state_of

from mmdit.config import load_config
from mmdit.errors import Refused
from mmdit.models import UNet, model_cost
from mmdit.pipelines.calibration import calibrate_broadcast
from mmdit.pipelines.comparison import compare, ways
from mmdit.pipelines.loading import load_pipeline
from mmdit.training.build import Inputs, build_network, clip_cost
from mmdit.training.config import ConditionConfig, RunConfig
from mmdit.training.init_from import init_from
from mmdit.training.loop import train
from mmdit.training.optimizer import make_optimizers
from mmdit.training.plan import plan_run
from mmdit.training.plan_data import data_of_store
from mmdit.training.sharding import check_sharding
from mmdit.training.trainee import Trainee

UNET = {"model": {"network": "unet", "hidden_size": 8, "depth": 1, "num_heads": 2}}


@pytest.fixture(scope="module")
def config(recipe: Any) -> RunConfig:
    return recipe(**UNET, steps=4, validate_every=9, validation_clips=1)


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unet") / "run"
    train(config, folder)
    return folder


def test_an_interrupted_run_ends_as_if_never(config: RunConfig, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    class Interrupted(Exception):
        pass

    def stop(step: int, *_: object) -> None:
        if step == 3:  # between two checkpoints
            raise Interrupted

    with pytest.raises(Interrupted):
        train(config, folder, progress=stop)
    train(config, folder)
    assert state_of(folder) == state_of(run)


def test_it_is_sampled_from_its_run_and_from_a_pipeline_folder(run: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(run)
    pipeline.set_progress_bar_config(disable=True)
    call = {"prompt": "a red coat", "label": 0, "num_inference_steps": 2, "guidance_scale": 2.0}
    clips = pipeline(**call).frames
    assert clips.shape == (1, 3, 32, 32, 3)
    pipeline.save_pretrained(tmp_path / "folder")
    saved = load_pipeline(tmp_path / "folder")
    assert isinstance(saved.transformer, UNet)
    saved.set_progress_bar_config(disable=True)
    assert np.array_equal(saved(**call).frames, clips)
    plain = DiffusionPipeline.from_pretrained(
        tmp_path / "folder", custom_pipeline=str(tmp_path / "folder"), trust_remote_code=True
    )
    assert isinstance(plain.transformer, UNet)
    assert saved(**call, num_frames=5).frames.shape[1] == 5  # in one go
    for broken, message in (
        (lambda: saved.enable_first_block_cache(), "blocks of a DiT"),
        (lambda: saved.enable_attention_broadcast(), "blocks of a DiT"),
        (lambda: saved.enable_compile(), "blocks of a DiT"),
        (lambda: calibrate_broadcast(saved, floor=30.0, **call), "blocks of a DiT"),
        (lambda: compare(lambda: saved, ways(saved.process, 2, 2, None), runs=1, call=call), "blocks of a DiT"),
        (lambda: saved(**call, image=clips[0, 0]), "was not trained"),
        (lambda: saved(**call, image=clips[0, 0], force_given=True), "cannot be given frames"),
        (lambda: saved(**call, num_frames=6, window_frames=3), "was not trained to go on"),
    ):
        with pytest.raises(Refused, match=message):
            broken()


def test_it_starts_from_a_unet_and_from_nothing_else(run: Path, recipe: Any) -> None:
    inputs, bare = Inputs((4, 3, 4, 4)), {"conditions": {}, "init_from": str(run)}
    config = recipe(**UNET, **bare)
    trainee = Trainee(build_network(config, inputs), None)
    with torch.no_grad():
        report = init_from(trainee, config, [], None)
    assert not report.fresh and trainee.transformer.get_parameter("unet.conv_out.weight").any()
    config = recipe(**bare)
    with pytest.raises(Refused, match=r"network of another kind.*got UNet, expected DiT; set model\.network"):
        init_from(Trainee(build_network(config, inputs), None), config, [], None)


def test_its_share_of_a_study_counts_the_network(config: RunConfig) -> None:
    network = build_network(config.model_copy(update={"conditions": ConditionConfig()}), Inputs((4, 3, 4, 4)))
    assert clip_cost(config.model, (4, 3, 4, 4)) == model_cost(network.config).macs
    with pytest.raises(Refused, match="does not divide into patches"):
        clip_cost(config.model.model_copy(update={"patch_size": (1, 1, 3)}), (4, 3, 4, 4))


@pytest.mark.slow
def test_its_plan_counts_the_network(config: RunConfig) -> None:
    plan = plan_run(config, data_of_store(config), gpu="h100")
    network = build_network(config, Inputs((4, 3, 4, 4), labels=5, text_dim=16))
    assert plan.parameters > sum(weight.numel() for weight in network.parameters())  # and the text encoder's
    assert plan.macs_per_clip < model_cost(network.config).macs  # some steps are on single frames


def test_muon_takes_its_matrices_and_adamw_its_convolutions(config: RunConfig) -> None:
    network = build_network(config, Inputs((4, 3, 4, 4), labels=2, text_dim=16))
    adamw, muon = make_optimizers(Trainee(network, None), config.optimizer)
    names = {weight: name for name, weight in network.named_parameters()}
    hidden, others = ({names[weight] for weight in part.param_groups[0]["params"]} for part in (muon, adamw))
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight" in hidden
    assert {"unet.conv_in.weight", "unet.conv_out.weight", "y_embedder.embedding_table.weight"} <= others
    assert hidden | others == set(names.values()) and not hidden & others


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.layout=joint", "nothing reads layout.*with model.network unet, expected model.network dit"),
        ("model.preset=DiT-S/2", "nothing reads preset"),
        ("model.checkpointing=1", "nothing reads checkpointing"),
        ("model.text_tokens_by=in-context", "nothing reads text_tokens_by"),
        ("conditions.given_frames={first: 0.5}", r"U-Net does not go with this.*leave out conditions\.given_frames"),
        ("lora={}", "U-Net does not go with this.*leave out lora"),
        ("compile=true", "U-Net does not go with this.*leave out compile"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_a_line(change: str, message: str) -> None:
    with pytest.raises(Refused, match=message) as refusal:
        load_config(RunConfig, "debug", ["model={network: unet}", change])
    assert "\n" not in str(refusal.value)


def test_its_weights_do_not_go_in_parts(config: RunConfig) -> None:
    with pytest.raises(Refused, match="sharding=full and model.network=unet"):
        check_sharding(config)
