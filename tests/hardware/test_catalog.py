from pathlib import Path

import pytest

from ggufdeploy.errors import Ambiguous, BadValue, NotFound
from ggufdeploy.hardware.catalog import (
    estimate_idle_free_bytes,
    find_gpu,
    list_gpus,
    match_nvml_name,
    parse_gpu,
    simulate,
)
from ggufdeploy.hardware.machine import load_machine

MIB, GIB = 1 << 20, 1 << 30
LAPTOP = load_machine(Path(__file__).parents[1] / "data" / "machines" / "cpu-only.json")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h100-sxm", "h100-sxm"),
        ("H100 SXM", "h100-sxm"),
        ("h100_sxm5", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("h100-pcie", "h100-pcie"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("h100-nvl", "h100-nvl"),
        ("a100-80gb", "a100-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("rtx-4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla T4", "t4"),
        ("l40s", "l40s"),
        ("4070 ti super", "rtx-4070-ti-super"),
    ],
)
def test_a_gpu_is_found_however_its_name_is_written(name, expected):
    assert find_gpu(name).id == expected


def test_h100_sxm_has_the_observed_figures():
    spec = find_gpu("h100-sxm")
    assert spec.nvml_total_bytes == 81559 * MIB
    assert spec.llama_total_bytes == 81079 * MIB
    assert spec.llama_free_bytes == 80552 * MIB
    assert not spec.llama_free_is_estimate
    assert spec.bandwidth_bytes_per_s == 3_350_000_000_000
    assert spec.fp16_flops_per_s == pytest.approx(989e12)
    assert spec.compute_capability == "9.0"


def test_a_name_with_several_meanings_is_refused_with_all_of_them():
    with pytest.raises(Ambiguous) as caught:
        find_gpu("h100")
    assert caught.value.choices == ("h100-sxm", "h100-pcie", "h100-nvl")
    assert "h100-sxm: 79.6 GiB, 3,350 GB/s" in (caught.value.hint or "")
    assert "h100-pcie: 79.6 GiB, 2,039 GB/s" in (caught.value.hint or "")
    with pytest.raises(Ambiguous, match="a100-pcie-40gb"):
        find_gpu("A100")


def test_an_unknown_name_is_refused_with_the_nearest_and_the_command_that_lists_them():
    with pytest.raises(NotFound) as caught:
        find_gpu("rtx-4900")
    assert not isinstance(caught.value, Ambiguous)
    assert caught.value.kind == "GPU"
    assert "rtx-4090" in (caught.value.hint or "")
    assert "ggufdeploy doctor --gpus" in (caught.value.hint or "")
    with pytest.raises(NotFound):
        find_gpu("")


@pytest.mark.parametrize("spec", list_gpus(), ids=lambda spec: spec.id)
def test_every_row_is_consistent_and_says_where_it_comes_from(spec):
    assert find_gpu(spec.id) is spec
    assert spec.source
    assert spec.verified <= {"memory", "llama", "bandwidth", "fp16"}
    assert 0 < spec.llama_free_bytes < spec.nvml_total_bytes
    assert spec.llama_total_bytes is None or spec.llama_free_bytes < spec.llama_total_bytes <= spec.nvml_total_bytes
    assert (spec.bandwidth_bytes_per_s is not None) == ("bandwidth" in spec.verified)
    assert (spec.fp16_flops_per_s is not None) == ("fp16" in spec.verified)
    assert "llama" in spec.verified or (spec.llama_free_is_estimate and spec.llama_total_bytes is None)


def test_the_estimate_of_free_memory_exceeds_no_observation():
    observed = [spec for spec in list_gpus() if not spec.llama_free_is_estimate]
    assert len(observed) >= 10
    for spec in observed:
        assert estimate_idle_free_bytes(spec.nvml_total_bytes) <= spec.llama_free_bytes, spec.id
        assert spec.llama_free_bytes - estimate_idle_free_bytes(spec.nvml_total_bytes) <= 600 * MIB, spec.id


def test_a_known_llama_total_gives_a_better_estimate_than_the_rule_for_the_gap():
    pcie = find_gpu("h100-pcie")
    assert pcie.llama_free_is_estimate
    assert pcie.llama_free_bytes == (81079 - 608) * MIB


def test_driver_names_are_matched_exactly_and_by_memory():
    assert match_nvml_name("NVIDIA H100 80GB HBM3", 81559 * MIB).id == "h100-sxm"
    assert match_nvml_name("NVIDIA L40S", 49140 * MIB).id == "l40s", "ECC off"
    assert match_nvml_name("NVIDIA GeForce RTX 3080", 10240 * MIB).id == "rtx-3080"
    assert match_nvml_name("NVIDIA GeForce RTX 3080", 12288 * MIB) is None, "the 12 GB card has other bandwidth"
    assert match_nvml_name("NVIDIA GeForce RTX 4090", 49140 * MIB) is None, "a modified card"
    assert match_nvml_name("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9984 * MIB) is None
    assert match_nvml_name("NVIDIA Quantum 9000", 81559 * MIB) is None


def test_gpu_arguments_name_a_card_and_a_count():
    assert [(spec.id, count) for spec, count in (parse_gpu("h100-sxm"), parse_gpu("rtx-3090:2"))] == [
        ("h100-sxm", 1),
        ("rtx-3090", 2),
    ]
    for text in ("h100-sxm:0", "h100-sxm:", "h100-sxm:-1", "h100-sxm:two", "h100-sxm:²"):
        with pytest.raises(BadValue):
            parse_gpu(text)


def test_simulation_replaces_the_devices_and_keeps_the_host():
    machine = simulate(find_gpu("rtx-3090"), 2, base=LAPTOP)
    assert [device.name for device in machine.devices] == ["CUDA0", "CUDA1"]
    assert {device.free_bytes for device in machine.devices} == {23845 * MIB}
    assert {device.bandwidth_bytes_per_s for device in machine.devices} == {936_000_000_000}
    assert machine.simulated
    assert machine.ram_available_bytes == LAPTOP.ram_available_bytes
    assert machine.physical_cores == LAPTOP.physical_cores


def test_simulated_ram_is_all_available():
    machine = simulate(find_gpu("h200-sxm"), 1, ram_bytes=512 * GIB, base=LAPTOP)
    assert machine.ram_total_bytes == machine.ram_available_bytes == 512 * GIB
    assert machine.devices[0].free_is_estimate
    assert machine.devices[0].fp16_flops_per_s == pytest.approx(989e12)


def test_nonsense_cannot_be_simulated():
    spec = find_gpu("t4")
    with pytest.raises(BadValue):
        simulate(spec, 0, base=LAPTOP)
    with pytest.raises(BadValue):
        simulate(spec, 1, ram_bytes=0, base=LAPTOP)
