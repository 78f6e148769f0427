"""What was measured is found again on the same machine, and nowhere else."""

import json
import threading
from dataclasses import replace

import pytest

from ggufdeploy.deploy import measurements
from ggufdeploy.deploy.measurements import (
    FILE_NAME,
    fingerprint,
    forget,
    recall,
    remember_bandwidth,
    remember_samples,
)
from ggufdeploy.errors import BadConfig
from ggufdeploy.hardware.samples import SpeedSample, Work
from ggufdeploy.units import GIB, MIB
from tests.planner.models import gpu, machine

HOST = replace(machine(), ram_bandwidth_bytes_per_s=None)


def sample(decode: float = 10.0, **changes) -> SpeedSample:
    facts = {
        "architecture": "llama", "n_params": 10**9, "weights_bytes": GIB, "active_params": 10**9, "n_gpu_layers": 0,
        "cpu_expert_layers": 0, "work": (Work("CPU", GIB, 10),), "prefill_tokens_per_s": None,
    }  # fmt: skip
    return SpeedSample(decode_tokens_per_s=decode, **{**facts, **changes})


def test_an_unmeasured_machine_stays_as_it_is(tmp_path):
    assert recall(HOST, tmp_path) is HOST
    assert not list(tmp_path.iterdir())


def test_what_was_measured_comes_back_with_the_machine(tmp_path):
    remember_bandwidth(HOST, 42_000_000_000, tmp_path / "state")
    remember_samples(HOST, (sample(),), tmp_path / "state")
    known = recall(HOST, tmp_path / "state")
    assert known == replace(HOST, ram_bandwidth_bytes_per_s=42_000_000_000, speed_samples=(sample(),))


def test_a_simulated_machine_recalls_nothing(tmp_path):
    remember_bandwidth(HOST, 42_000_000_000, tmp_path)
    simulated = replace(HOST, simulated=True)
    assert recall(simulated, tmp_path) is simulated


@pytest.mark.parametrize(
    "other",
    [
        replace(HOST, cpu_name="another"),
        replace(HOST, physical_cores=4),
        replace(HOST, ram_total_bytes=HOST.ram_total_bytes + 8 * GIB),
        replace(HOST, devices=(gpu(24 * GIB),)),
    ],
)
def test_another_machine_is_another_record(other, tmp_path):
    remember_bandwidth(HOST, 42_000_000_000, tmp_path)
    assert recall(other, tmp_path) is other


def test_what_changes_between_boots_does_not_change_the_machine():
    later = replace(
        HOST, ram_total_bytes=HOST.ram_total_bytes - 3 * MIB, ram_available_bytes=GIB, os_name="Linux 99",
        ram_bandwidth_bytes_per_s=1, speed_samples=(sample(),),
    )  # fmt: skip
    assert fingerprint(later) == fingerprint(HOST)


def test_a_new_run_of_a_model_replaces_the_earlier_one_at_the_same_placement(tmp_path):
    other = sample(20.0, n_params=2 * 10**9)
    remember_samples(HOST, (sample(10.0), other), tmp_path)
    remember_samples(HOST, (sample(12.0),), tmp_path)
    assert recall(HOST, tmp_path).speed_samples == (other, sample(12.0))


def test_only_the_newest_runs_are_kept(tmp_path):
    many = tuple(sample(1.0 + n, n_params=n) for n in range(measurements._MAX_SAMPLES + 5))
    remember_samples(HOST, many, tmp_path)
    assert recall(HOST, tmp_path).speed_samples == many[5:]


@pytest.mark.parametrize("text", ["", "{", '{"machines": 3}', '{"machines": {}, "schema_version": 99}'])
def test_a_file_that_cannot_be_read_is_an_error_that_names_the_way_out(text, tmp_path):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(BadConfig, match=FILE_NAME) as caught:
        recall(HOST, tmp_path)
    assert caught.value.hint == "ggufdeploy bench --forget"
    assert forget(HOST, tmp_path)
    assert recall(HOST, tmp_path) is HOST


def test_forgetting_leaves_other_machines_alone(tmp_path):
    other = replace(HOST, cpu_name="another")
    for box in (HOST, other):
        remember_bandwidth(box, 42_000_000_000, tmp_path)
    assert forget(HOST, tmp_path)
    assert not forget(HOST, tmp_path)
    assert recall(other, tmp_path).ram_bandwidth_bytes_per_s == 42_000_000_000


def test_two_benches_at_once_lose_nothing(tmp_path):
    def bench(n: int) -> None:
        remember_samples(HOST, (sample(n_params=n),), tmp_path)

    threads = [threading.Thread(target=bench, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {s.n_params for s in recall(HOST, tmp_path).speed_samples} == set(range(8))


def test_the_file_says_in_words_which_machine_it_is_about(tmp_path):
    path = remember_bandwidth(replace(HOST, cpu_name="Some CPU", devices=(gpu(GIB),)), 1, tmp_path)
    (record,) = json.loads(path.read_text())["machines"].values()
    assert record["description"] == "Some CPU, 8 cores, 256 GiB, test"
