import pytest

from ggufdeploy.hardware.cpu import (
    Cores,
    Ram,
    measure_ram_bandwidth_bytes_per_s,
    read_cores,
    read_cpu_name,
    read_ram,
)

GIB = 1 << 30
HOST = Ram(64 * GIB, 48 * GIB)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def topology(n_cores, threads):
    """Files of a processor whose core c has the CPUs c, c + n_cores, ..."""
    cpus = range(n_cores * threads)
    lists = {cpu: ",".join(str(cpu % n_cores + n_cores * thread) for thread in range(threads)) for cpu in cpus}
    return {f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list": text + "\n" for cpu, text in lists.items()}


def test_without_a_cgroup_the_host_counts(tmp_path):
    assert read_ram(tmp_path, HOST) == HOST


def test_a_cgroup_v2_limit_replaces_the_host_figures(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory.stat": f"anon {GIB}\nfile {2 * GIB}\ninactive_file {GIB}\nactive_file {GIB}\n",
        },
    )
    assert read_ram(tmp_path, HOST) == Ram(8 * GIB, 6 * GIB)


def test_the_tightest_limit_on_the_way_up_counts(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{16 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{15 * GIB}\n",
            "sys/fs/cgroup/user.slice/job/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/job/memory.current": f"{GIB}\n",
        },
    )
    assert read_ram(tmp_path, HOST) == Ram(16 * GIB, GIB)


def test_a_cgroup_v1_limit_is_found_from_inside_a_container(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {2 * GIB}\n",
        },
    )
    assert read_ram(tmp_path, HOST) == Ram(4 * GIB, 3 * GIB)


def test_an_unlimited_cgroup_v1_changes_nothing(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
        },
    )
    assert read_ram(tmp_path, HOST) == HOST


def test_a_group_outside_the_namespace_is_not_followed_out_of_the_tree(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../../other\n",
            "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
            "sys/other/memory.max": "1\n",
            "other/memory.max": "1\n",
        },
    )
    assert read_ram(tmp_path, HOST).total_bytes == 8 * GIB


def test_available_memory_is_never_negative_or_above_the_total(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{5 * GIB}\n",
        },
    )
    assert read_ram(tmp_path, HOST) == Ram(2 * GIB, 0)


def test_the_real_host_has_memory_and_cores():
    ram, cores = read_ram(), read_cores()
    assert 0 < ram.available_bytes <= ram.total_bytes
    assert 1 <= cores.physical <= cores.logical


def test_hyper_threads_share_a_physical_core(tmp_path):
    write(tmp_path, topology(4, 2))
    assert read_cores(tmp_path, frozenset(range(8))) == Cores(4, 8)


@pytest.mark.parametrize(("cpus", "expected"), [({0, 4}, Cores(1, 2)), ({0, 1}, Cores(2, 2)), ({6}, Cores(1, 1))])
def test_only_allowed_cpus_count(tmp_path, cpus, expected):
    write(tmp_path, topology(4, 2))
    assert read_cores(tmp_path, frozenset(cpus)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, Cores(2, 2)),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, Cores(1, 1)),
        ({"sys/fs/cgroup/cpu.max": "600000 100000\n"}, Cores(4, 6)),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, Cores(4, 8)),
        ({"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n"}, Cores(4, 8)),
        (
            {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            Cores(3, 3),
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            Cores(4, 8),
        ),
    ],
)
def test_a_cpu_quota_limits_the_cores(tmp_path, files, expected):
    write(tmp_path, {"proc/self/cgroup": "3:cpu,cpuacct:/\n0::/\n", **topology(4, 2), **files})
    assert read_cores(tmp_path, frozenset(range(8))) == expected


def test_without_topology_files_there_is_still_an_answer(tmp_path):
    cores = read_cores(tmp_path, frozenset({0, 1}))
    assert cores.logical == 2
    assert 1 <= cores.physical <= 2


def test_the_processor_is_named_by_the_kernel(tmp_path):
    assert read_cpu_name(tmp_path) is None
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9654\n"})
    assert read_cpu_name(tmp_path) == "AMD EPYC 9654"


def test_measured_bandwidth_is_one_a_computer_can_have():
    rate = measure_ram_bandwidth_bytes_per_s(0.05, threads=1)
    assert 10**8 < rate < 10**12
