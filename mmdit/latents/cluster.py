"""Encoding on a cluster: Ray Data places the shards of a run on machines, restarts what died, and balances."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdit.errors import Refused, Stopped
from mmdit.latents.encode import Engine, join

if TYPE_CHECKING:
    from mmdit.latents.codec import Codec
    from mmdit.latents.work import Work


def ray_engine(load: Callable[[], "Codec"], processes: int, *, gpus: float = 0.0, cpus: float = 1.0) -> Engine:
    """An engine for `encode_clips` that has the shards made by `processes` processes of a Ray cluster.

    The cluster is the one of RAY_ADDRESS; without one, it is started on this machine. Every machine of it must see the
    sources and the store under the same paths.

    Args:
        load: loads the codec in each process.
        gpus, cpus: what each process takes of a machine.

    Raises:
        Refused: Ray is not installed.
    """
    try:
        import ray.data
    except ImportError:
        raise Refused("no Ray here", fix="pip install 'mmdit-video[ray]'") from None

    def engine(work: "Work") -> None:
        started = not ray.is_initialized()
        if started:
            ray.init(include_dashboard=False, log_to_driver=False)
        try:
            numbers = [{"number": number} for number in work.shards]
            made = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
                _Encoder,
                fn_constructor_args=(str(work.folder.absolute()), load),
                batch_size=1,
                concurrency=processes,
                num_gpus=gpus,
                num_cpus=cpus,
            )
            count = sum(1 for _ in made.iter_rows())
        except ray.exceptions.RayError as error:
            raise Stopped(
                "the cluster gave up", where=work.folder, got=str(error).splitlines()[0],
                fix="run the same command again: it goes on where it ended",
            ) from error  # fmt: skip
        finally:
            if started:
                ray.shutdown()
        if count != len(work.shards):
            raise Stopped("the cluster lost shards", where=work.folder, got=count, expected=len(work.shards))

    return engine


class _Encoder:
    """One process of the cluster: loads the codec once, then makes shard after shard."""

    def __init__(self, folder: str, load: Callable[[], "Codec"]) -> None:
        self.folder, self.codec = Path(folder), load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        join(self.folder, self.codec, [int(number) for number in batch["number"]])
        return batch | {"process": [os.getpid()] * len(batch["number"])}
