"""Which files a checkpoint may hold, and what is looked at before a library opens them."""

import json
import struct
from pathlib import Path
from typing import Any

from mmdit.errors import Refused

# Weights, configs, and the vocabularies of tokenizers: formats that hold data only. Pickles of any name are not here.
DATA_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
MAX_HEADER = 16 << 20  # bytes; a network of 10,000 tensors has about 1.5 MB


def check_data_file(path: Path) -> None:
    """Refused for a file that may hold code (by its name), and for a safetensors file that is none.

    At most `MAX_HEADER` bytes are read.
    """
    if path.suffix not in DATA_SUFFIXES:
        raise Refused(
            "a file that could hold code", where=path, got=path.suffix or "no suffix",
            expected=f"one of {', '.join(DATA_SUFFIXES)}", fix="use weights saved as safetensors",
        )  # fmt: skip
    if path.suffix == ".safetensors":
        check_safetensors(path)


def check_safetensors(path: Path) -> None:
    """Refused unless the header is one, of a sane size, and its tensors fill the file without gap or overlap."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise _refused(path, f"a header of {length} bytes in a file of {size}", "a header within the file")
        if length > MAX_HEADER:
            raise _refused(path, f"a header of {length} bytes", f"at most {MAX_HEADER}")
        header = handle.read(length)
    try:
        about = json.loads(header)
        spans = sorted(_span(entry) for name, entry in about.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _refused(path, "a header that is not read", "names with type, shape and offsets") from None
    end = 0
    for first, last in spans:
        if first != end or last < first:
            raise _refused(path, f"tensor bytes {first} to {last} after {end}", "no gap and no overlap")
        end = last
    if end != size - 8 - length:
        raise _refused(path, f"{size - 8 - length} bytes of tensors", f"{end}")


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    first, last = entry["data_offsets"]
    return int(first), int(last)


def _refused(path: Path, got: str, expected: str) -> Refused:
    return Refused("not a sound safetensors file", where=path, got=got, expected=expected)
