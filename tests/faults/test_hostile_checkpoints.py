"""Files of strangers in a checkpoint whose manifest fits: nothing is run, and memory stays bounded."""

import json
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from runs import sign

from mmdit.errors import Refused
from mmdit.training.checkpoint import find_checkpoint
from mmdit.training.data_files import check_safetensors
from mmdit.training.loop import train

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def safetensors(header: dict[str, Any] | bytes, data: int = 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def tensor(first: int, last: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [last - first], "data_offsets": [first, last]}


@pytest.fixture
def trained(recipe: Any, tmp_path: Path) -> Path:
    train(recipe(steps=1), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", [WEIGHTS, "transformer/pytorch_model.bin", "optimizer.pt", "code.py", "rows.npy"])
def test_a_pickle_by_any_name_is_refused_and_not_run(trained: Path, recipe: Any, tmp_path: Path, name: str) -> None:
    payload = pickle.dumps(Payload(tmp_path / "was-run"))
    pickle.loads(payload).close()
    assert (tmp_path / "was-run").exists()
    (tmp_path / "was-run").unlink()
    checkpoint = find_checkpoint(trained)
    (checkpoint / name).write_bytes(payload)
    with pytest.raises(Refused, match=name):  # not listed, or changed
        train(recipe(steps=1), trained)
    sign(checkpoint)
    with pytest.raises(Refused, match=name):
        train(recipe(steps=1), trained)
    assert not (tmp_path / "was-run").exists()


HEADERS = {
    "100 MB header": struct.pack("<Q", 100 << 20),
    "header past the end": struct.pack("<Q", 1 << 62) + b"{}",
    "cut in the length": b"\0\0\0",
    "overlap": safetensors({"a": tensor(0, 6), "b": tensor(4, 8)}),
    "gap": safetensors({"a": tensor(0, 2), "b": tensor(4, 8)}),
    "past the end": safetensors({"a": tensor(0, 9)}),
    "backward": safetensors({"a": tensor(0, 8), "b": tensor(8, 4)}),
    "deep": safetensors(b"[" * 100_000),
    "no names": safetensors(b"[1]"),
    "no offsets": safetensors({"a": {}}),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_hostile_header_is_refused_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(HEADERS[kind])
    if kind == "100 MB header":
        with open(path, "ab") as handle:
            handle.truncate((100 << 20) + 16)
    tracemalloc.start()
    with pytest.raises(Refused, match="not a sound safetensors file, in .*a.safetensors"):
        check_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_sound_header_passes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(
        safetensors({"b": tensor(4, 8), "a": tensor(0, 4), "__metadata__": {"format": "pt"}})
    )
    check_safetensors(tmp_path / "a.safetensors")


def test_a_checkpoint_with_a_hostile_header_is_refused(trained: Path, recipe: Any) -> None:
    checkpoint = find_checkpoint(trained)
    (checkpoint / "ema" / WEIGHTS).write_bytes(HEADERS["overlap"])
    sign(checkpoint)
    with pytest.raises(Refused, match="no gap and no overlap"):
        train(recipe(steps=1), trained)
