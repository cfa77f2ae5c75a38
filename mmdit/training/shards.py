"""Tensors that several processes hold in parts, as files of torch's distributed checkpoint.

FOLDER/shard-00000-of-00002.safetensors: the parts of process 0, with the place of each in the file's header, as
torch.distributed.checkpoint.HuggingFaceStorageReader reads it. No pickle is written or read. Any number of processes
reads what any number wrote; a single safetensors file without places is a folder of whole tensors.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from mmdit import files
from mmdit.errors import Refused

Groups = Mapping[str, Mapping[str, Tensor]]
Places = Mapping[str, Mapping[str, list[int] | None]]

PLACES, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"  # as torch has them


def offsets(value: Tensor) -> list[int] | None:
    """Where this process's part begins in the whole tensor; None where another process writes it."""
    if not isinstance(value, DTensor):
        return [0] * value.ndim if dist.get_rank() == 0 else None
    (part,) = value.__create_chunk_list__()
    return list(part.offsets) if part.sizes.numel() else None


def write_together(folder: Path, groups: Groups, places: Places, processes: dist.ProcessGroup) -> None:
    """Each of the processes writes its parts below FOLDER/GROUP; returns when all have.

    Args:
        groups: this process's parts, by group and name.
        places: where each begins in the whole tensor; None where another process writes it.
        processes: of gloo, and used by nothing else meanwhile.

    Raises:
        OSError, SafetensorError: on all of them, where one could not write.
    """
    rank, count = dist.get_rank(processes), dist.get_world_size(processes)
    failure: Exception | None = None
    try:
        for group, parts in groups.items():
            mine = {name: place for name, place in places[group].items() if place is not None}
            about = json.dumps({name: {OFFSETS: place} for name, place in mine.items()})
            path = folder / group / f"shard-{rank:05d}-of-{count:05d}.safetensors"
            files.write_safetensors(path, {name: parts[name] for name in mine}, {PLACES: about})
    except (OSError, SafetensorError) as error:
        failure = error
    failed = torch.tensor(failure is not None, dtype=torch.int32)
    dist.all_reduce(failed, group=processes)
    if failure is not None:
        raise failure
    if failed:
        raise OSError("another process, which says why")


def shapes_in(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Shape and type of the whole tensors in a folder.

    Raises:
        Refused: the places in the headers are none, or the parts leave gaps.
    """
    try:
        about = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        found = {name: one for name, one in about.items() if isinstance(one, TensorStorageMetadata)}
        sound = all(sum(part.sizes.numel() for part in one.chunks) == one.size.numel() for one in found.values())
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise Refused("shards that are not read", where=folder, got=f"{type(error).__name__}: {error}") from None
    if not sound:
        raise Refused("shards that do not make whole tensors", where=folder, got="parts with gaps or overlaps")
    return found


def read_shards(folder: Path, wanted: dict[str, Tensor]) -> None:
    """Fills the tensors of `wanted`, whole ones or parts, with what the folder has by their names.

    Raises:
        Refused: a name is missing, or has another shape.
    """
    found = shapes_in(folder)
    for name, value in wanted.items():
        if name not in found or found[name].size != value.shape:
            raise Refused(
                "the shards are of another network", where=folder,
                got=f"{name} {tuple(found[name].size)}" if name in found else f"no {name}",
                expected=f"{name} {tuple(value.shape)}",
            )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(wanted, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder, put together on the CPU."""
    tensors = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in shapes_in(folder).items()}
    read_shards(folder, tensors)
    return tensors
