import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufdeploy.errors import BadConfig, NotFound
from ggufdeploy.hardware.machine import Device, Machine, load_machine, machine_from_json, machine_to_json

RECORDED = Path(__file__).parents[1] / "data" / "machines"

sizes = st.integers(min_value=0, max_value=1 << 45)
words = st.text(min_size=1, max_size=20)


@st.composite
def devices(draw, name):
    total = draw(sizes)
    return Device(
        name=name,
        kind=draw(st.sampled_from(["gpu", "rpc"])),
        description=draw(words),
        total_bytes=total,
        free_bytes=draw(st.integers(0, total)),
        free_is_estimate=draw(st.booleans()),
        catalogue_id=draw(st.none() | words),
        bandwidth_bytes_per_s=draw(st.none() | sizes),
        compute_capability=draw(st.none() | words),
        display=draw(st.none() | st.booleans()),
    )


@st.composite
def machines(draw):
    total = draw(st.integers(1, 1 << 45))
    logical = draw(st.integers(1, 512))
    return Machine(
        devices=tuple(draw(devices(f"CUDA{index}")) for index in range(draw(st.integers(0, 4)))),
        ram_total_bytes=total,
        ram_available_bytes=draw(st.integers(0, total)),
        physical_cores=draw(st.integers(1, logical)),
        logical_cores=logical,
        cpu_name=draw(st.none() | words),
        ram_bandwidth_bytes_per_s=draw(st.none() | sizes),
        simulated=draw(st.booleans()),
    )


@given(machines())
def test_any_machine_survives_the_way_to_json_and_back(machine):
    assert machine_from_json(machine_to_json(machine)) == machine


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.json")), ids=lambda path: path.stem)
def test_recorded_machines_load_and_say_that_they_are_not_real(path):
    machine = load_machine(path)
    assert json.loads(path.read_text(encoding="utf-8")).items() <= json.loads(machine_to_json(machine)).items()
    assert machine.simulated


def test_recorded_h100_has_what_llama_cpp_sees_on_an_idle_card():
    (device,) = load_machine(RECORDED / "h100-sxm.json").devices
    assert device.free_bytes == 80552 << 20
    assert device.total_bytes == 81559 << 20
    assert not device.free_is_estimate


def edited(path, edit):
    data = json.loads((RECORDED / path).read_text(encoding="utf-8"))
    edit(data)
    return json.dumps(data)


def test_an_unknown_key_of_a_device_is_refused_with_the_nearest_one():
    text = edited("2x24gib.json", lambda data: data["devices"][1].update(free_byte=1))
    with pytest.raises(BadConfig) as caught:
        machine_from_json(text, origin="my.json")
    assert caught.value.name == "devices[1].free_byte"
    assert "my.json" in caught.value.message
    assert caught.value.hint == "did you mean devices[1].free_bytes?"


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda data: data.update(ram_total=1), "ram_total"),
        (lambda data: data.update(ram_total_bytes="64GiB"), "ram_total_bytes"),
        (lambda data: data.update(ram_available_bytes=1 << 50), "ram_available_bytes"),
        (lambda data: data.update(physical_cores=99), "physical_cores"),
        (lambda data: data.update(schema_version=2), "schema_version"),
        (lambda data: data["devices"][0].update(kind="tpu"), "kind"),
        (lambda data: data["devices"][0].update(name="CUDA1"), "devices"),
        (lambda data: data["devices"][0].update(free_bytes=1 << 40), "devices[0].free_bytes"),
        (lambda data: data["devices"][0].pop("total_bytes"), "total_bytes"),
    ],
)
def test_a_wrong_machine_is_refused_with_the_key(edit, names):
    with pytest.raises(BadConfig, match=names.replace("[", r"\[")):
        machine_from_json(edited("2x24gib.json", edit))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"devices": 3}'])
def test_text_that_is_no_machine_is_refused(text):
    with pytest.raises(BadConfig):
        machine_from_json(text)


def test_a_missing_machine_file_says_how_to_make_one(tmp_path):
    with pytest.raises(NotFound) as caught:
        load_machine(tmp_path / "nowhere.json")
    assert "ggufdeploy doctor" in (caught.value.hint or "")


def test_a_machine_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "machine.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(BadConfig, match="not UTF-8"):
        load_machine(path)
