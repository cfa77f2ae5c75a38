"""How much memory a training step takes: the step itself, run on tensors that have shapes and no data.

Every storage that the step makes is counted from the moment it is there until it is freed, so that what autograd keeps,
gradients, copies of the weights in another precision and passing results are all in it, and what activation
checkpointing saves is out of it. Not seen is what a kernel allocates for itself and gives back before it returns.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmdit.conditioning import TextEncoder
from mmdit.diffusion.samplers import Process
from mmdit.training.build import Inputs, build_network, build_process
from mmdit.training.config import RunConfig
from mmdit.training.ema import EMA
from mmdit.training.optimizer import make_optimizers
from mmdit.training.trainee import Trainee

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepInputs:
    """What a step is fed with: `of` says the network's inputs. `text_tokens` is the longest caption in tokens; the
    encoder that is trained along, if any, is `text_encoder`."""

    of: Inputs
    text_tokens: int = 0
    text_encoder: TextEncoder | None = None


@dataclass(frozen=True)
class Line:
    """Bytes over the course of a part of a step, as a linear function of the clips in it."""

    base: NDArray[np.int64]
    each: NDArray[np.int64]

    def at(self, clips: int) -> NDArray[np.int64]:
        return self.base + clips * self.each


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on one device.

    `weights`, `optimizer` and `averages` stay; `gradients` come and go. `clip` is what a clip of the batch itself
    takes. The lines are over what stays: of a forward and backward pass on its own, of one beside gradients that are
    there already, and of clipping, optimizer and averages.
    """

    weights: int
    trained: int
    gradients: int
    optimizer: int
    averages: int
    clip: int
    first: Line
    later: Line
    update: Line
    forward_ends: int
    """Place in `first` where the forward pass is over."""

    def activations(self, micro_batch: int) -> int:
        """What the forward pass leaves for the backward pass."""
        return int(self.first.at(micro_batch)[self.forward_ends])

    def peak(self, share: int, micro_batch: int) -> int:
        """Most bytes at one time: `share` clips on this device, computed up to `micro_batch` at once."""
        size = min(share, micro_batch)
        lines = [self.first, self.update] + [self.later] * (size < share)
        passing = max(int(line.at(size).max()) for line in lines)
        return self.weights + self.optimizer + self.averages + share * self.clip + passing


def trace_step(config: RunConfig, inputs: StepInputs, precision: str, *, on_gpu: bool) -> StepMemory:
    """The memory of a step of this recipe; takes seconds for the largest network, and next to no memory.

    Args:
        precision: "float32", "bfloat16" or "float16".
        on_gpu: fused attention, norms in float32 under autocast, averages on the CPU where the recipe says so.
    """
    lines: dict[str, list[NDArray[np.int64]]] = {"first": [], "later": [], "update": []}
    with FakeTensorMode(), _Live() as live:
        step = TrainingStep(config, inputs, precision, on_gpu=on_gpu)
        optimizer = step.make_optimizer_state()
        trained = [weight for weight in step.trainee.parameters() if weight.requires_grad]
        gradients = _bytes(trained)  # they are there already from here on
        for weight in trained:
            weight.register_post_accumulate_grad_hook(live.got_gradient)
        step.loss(step.batch(2))  # makes tables that are kept: of positions, of the process
        for size in (2, 3):  # 1 would leave out sums over the batch
            batch = step.batch(size)
            live.restart()
            forward = step.part(batch, live)
            over, got = live.lines()
            lines["first"].append(over + got)
            lines["later"].append(over + gradients)
            step.update()
            lines["update"].append(live.lines()[0][len(over) :] + gradients)
            del batch
    first, later, update = (Line(3 * two - 2 * three, three - two) for two, three in lines.values())
    averages = 0 if on_gpu and config.ema_device == "cpu" else _bytes(*(a.values() for a in step.ema.all_averages))
    return StepMemory(
        weights=_bytes(step.trainee.parameters(), step.trainee.buffers()), gradients=gradients,
        trained=sum(weight.numel() for weight in trained), optimizer=optimizer, averages=averages,
        clip=2 * 4 * int(np.prod(inputs.of.latent_shape)), first=first, later=later, update=update,
        forward_ends=forward,
    )  # fmt: skip


def measure_step(config: RunConfig, inputs: StepInputs, precision: str, *, share: int, micro_batch: int) -> int:
    """The peak of the same step on real tensors: all that the CPU's allocator handed out."""
    step = TrainingStep(config, inputs, precision, on_gpu=False)
    batch = step.batch(min(share, micro_batch))

    def whole_step() -> None:
        for _ in range(-(-share // micro_batch)):
            step.part(batch)
        step.update()
        step.forget()

    whole_step()  # makes the state of the optimizer, and what kernels keep
    return measure_peak(step, batch, whole_step, share=share)


def measure_peak(step: "TrainingStep", batch: tuple[Tensor, ...], work: Callable[[], None], *, share: int) -> int:
    """Most bytes while `work` does such a step on `share` clips, as the CPU's allocator tells; not for its first."""
    states = (value for one in step.optimizers for state in one.state.values() for value in state.values())
    stays = _bytes(step.trainee.parameters(), step.trainee.buffers(), states)
    stays += _bytes(*(averages.values() for averages in step.ema.all_averages))
    stays += share * 2 * batch[0].untyped_storage().nbytes() // len(batch[0])
    return stays + most_held(work)


def most_held(work: Callable[[], None]) -> int:
    """Most bytes at one time over what there was before, as the CPU's allocator tells."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler tells the terminal when it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max())


class TrainingStep:
    """What a run does in a step, as far as memory goes: alike on real tensors and on those without data."""

    def __init__(self, config: RunConfig, inputs: StepInputs, precision: str, *, on_gpu: bool) -> None:
        if on_gpu and config.model.attention_backend in ("auto", "xformers"):
            config = config.model_copy(update={"model": config.model.model_copy(update={"attention_backend": "sdpa"})})
        self.config, self.inputs, self.precision, self.on_gpu = config, inputs, DTYPES[precision], on_gpu
        self.process: Process = build_process(config, inputs.of.latent_shape)
        encoder = inputs.text_encoder
        if encoder is not None:  # one of the same make: its weights shall be of the kind that the network's are
            encoder = TextEncoder(type(encoder.model)(encoder.model.config), encoder.tokenizer).train()
        self.trainee = Trainee(build_network(config, inputs.of), encoder)
        self.optimizers = make_optimizers(self.trainee, config.optimizer)
        self.ema = EMA(self.trainee, config.ema_decay)

    def make_optimizer_state(self) -> int:
        """A first step of the optimizers, on gradients of zero that stay; the bytes of what the optimizers keep."""
        for weight in self.trainee.parameters():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        for optimizer in self.optimizers:
            optimizer.step()
        return _bytes(value for one in self.optimizers for state in one.state.values() for value in state.values())

    def batch(self, size: int) -> tuple[Tensor, ...]:
        """Latents, noise and times of `size` clips."""
        latents = torch.zeros(size, *self.inputs.of.latent_shape)
        return latents, torch.zeros_like(latents), self.process.draw_times(torch.zeros(size))

    def part(self, batch: tuple[Tensor, ...], live: "_Live | None" = None) -> int:
        """Forward and backward; where in the line of `live` the forward pass was over."""
        with _norms_in_float32() if self.on_gpu and self.precision != torch.float32 else nullcontext():
            loss = self.loss(batch)
            forward = len(live.line) - 1 if live is not None else 0
            loss.backward()  # which computes blocks again under checkpointing
        return forward

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The mean loss of a batch."""
        latents, noise, times = batch
        size, network = len(latents), self.trainee.transformer.config
        labels = torch.zeros(size, dtype=torch.long) if network.num_classes else None

        def predict(x_t: Tensor, timesteps: Tensor) -> Tensor:
            with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
                return self.trainee(x_t, timesteps, labels, self._captions(size))

        return self.process.loss(predict, latents, noise, times).per_sample.mean()

    def _captions(self, size: int) -> tuple[Tensor, ...] | None:
        network, count = self.trainee.transformer.config, self.inputs.text_tokens
        if not network.text_dim:
            return None
        mask = torch.ones(size, count, dtype=torch.bool)
        if self.trainee.text_encoder is not None:
            return torch.zeros(size, count, dtype=torch.long), mask
        width = network.get("text_token_dim")
        tokens = (torch.zeros(size, count, width), mask) if width else ()
        return torch.zeros(size, network.text_dim), *tokens

    def update(self) -> None:
        """Clipping, the optimizers, the averages."""
        weights = list(self.trainee.parameters())
        norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        if self.config.optimizer.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(weights, self.config.optimizer.clip_norm, norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.ema.update(self.trainee, 1)

    def forget(self) -> None:
        """Lets the gradients go."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


class _Live(TorchDispatchMode):
    """Counts the bytes of every storage that is made while it is on, after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.line: list[tuple[int, int]] = []
        self._now = self._start = self._gradients = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and (key := value.untyped_storage()._cdata) not in self._known:
                storage = value.untyped_storage()
                self._known[key] = storage.nbytes()
                self._now += storage.nbytes()
                weakref.finalize(storage, self._gone, key)
        self.line.append((self._now - self._start, self._gradients))
        return out

    def _gone(self, key: int) -> None:
        self._now -= self._known.pop(key, 0)

    def got_gradient(self, weight: Tensor) -> None:
        """The gradient of this weight is whole."""
        self._gradients += _bytes([weight])

    def restart(self) -> None:
        """From now on, a new line over what there is."""
        self.line, self._start, self._gradients = [], self._now, 0

    def lines(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bytes over what there was, and bytes of the weights whose gradients were whole, after each operation."""
        over, got = np.array(self.line, dtype=np.int64).T
        return over, got


@contextmanager
def _norms_in_float32() -> Iterator[None]:
    """What autocast does to norms on a CUDA device, and does not on a CPU: float32 in, float32 out. A mode of torch's
    would not reach blocks that are computed again inside the backward pass."""
    with ExitStack() as patches:
        for name in ("layer_norm", "rms_norm"):
            patches.enter_context(patch.object(F, name, _in_float32(getattr(F, name))))
        yield


def _in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *rest, **named: norm(x.float(), *rest, **named)


def _bytes(*groups: Iterable[Any]) -> int:
    return sum(value.numel() * value.element_size() for group in groups for value in group if isinstance(value, Tensor))


def memory_cases(depth: int | None = None) -> Iterator[tuple[str, RunConfig, StepInputs, str]]:
    """What the estimate is compared with measurements on: name, recipe, inputs and precision."""
    shapes = {("DiT-S/2", "space"): (4, 1, 32, 32), ("DiT-S/4", "factorized"): (4, 8, 32, 32)}
    for (preset, layout), shape in shapes.items():
        for precision in ("float32", "bfloat16"):
            for checkpointing in (0, 1):
                model = {"preset": preset, "layout": layout, "depth": depth, "checkpointing": checkpointing}
                values = {"steps": 1, "data": {"store": ""}, "conditions": {"labels": True}, "model": model}
                name = f"{preset} {layout} {'x'.join(map(str, shape))} {precision}"
                name += " with checkpointing" if checkpointing else ""
                yield name, RunConfig.model_validate(values), StepInputs(Inputs(shape, 10)), precision
