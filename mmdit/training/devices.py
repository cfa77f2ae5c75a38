"""The devices that training is planned for and measured on: one table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """`peak`: dense bfloat16 (float16 where there is none) operations a second, a multiply-accumulate counted as two,
    as the maker's data sheet has it. `memory`: bytes that a process can use, a little less than the sheet's."""

    name: str
    peak: float
    memory: int


# Name, 10^12 operations a second, GiB. A row serves devices whose name has all words of its own; the first such counts.
_TABLE = (
    ("B200", 2250, 178), ("H200", 989.4, 139), ("H100 PCIe", 756, 79), ("H100 NVL", 835, 93), ("H100", 989.4, 79),
    ("A100 40GB", 312, 39), ("A100", 312, 79), ("L40S", 362, 44), ("L4", 121, 22), ("A10", 125, 22),
    ("V100 32GB", 125, 31), ("V100", 125, 15), ("T4", 65, 14), ("RTX 4090", 165, 23), ("RTX 3090", 71, 23),
)  # fmt: skip
DEVICES = tuple(Device(name, peak * 1e12, memory * 2**30) for name, peak, memory in _TABLE)


def find_device(name: str) -> Device | None:
    """The device of a name such as "h200", "a100-40gb" or "NVIDIA H100 80GB HBM3"; None for one that is not known."""
    words = set(name.lower().replace("-", " ").replace("_", " ").split())
    return next((device for device in DEVICES if words >= set(device.name.lower().split())), None)


def device_peak(name: str, precision: str) -> float | None:
    """Operations a second that a device of this name could do at most, or None where that is not known.

    Args:
        precision: "bf16" or "fp16"; others are not known.
    """
    device = find_device(name)
    return device.peak if device is not None and precision in ("bf16", "fp16") else None
