"""One table of devices."""

from mmdit.training.devices import device_peak, find_device


def test_the_peak_is_the_devices_own() -> None:
    assert device_peak("NVIDIA H100 80GB HBM3", "bf16") == 989.4e12
    assert device_peak("NVIDIA H100 PCIe", "bf16") == 756e12
    assert device_peak("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert device_peak("NVIDIA L40S", "bf16") == 362e12
    assert device_peak("NVIDIA L4", "bf16") == 121e12
    assert device_peak("NVIDIA H100 80GB HBM3", "no") is None
    assert device_peak("Some New Device", "bf16") is None


def test_devices_are_found_as_people_name_them() -> None:
    for said, name in (("h200", "H200"), ("a100-40gb", "A100 40GB"), ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
                       ("A100", "A100"), ("h100_pcie", "H100 PCIe"),
                       ("Tesla V100-SXM2-32GB", "V100 32GB")):  # fmt: skip
        found = find_device(said)
        assert found is not None and found.name == name
    h200, h100 = find_device("h200"), find_device("h100")
    assert h200 and h100 and h200.memory > h100.memory > 70 * 2**30
    assert find_device("h2") is None
