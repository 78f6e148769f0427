from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from ggufdeploy.deploy.instances import Instance, Registry, identity_of, registered, send, wait_gone
from ggufdeploy.errors import NotFound


@pytest.fixture
def sleeper():
    """A process of ours that sleeps until it is signalled."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def registry(settings) -> Registry:
    return Registry(settings)


def instance(pid: int, model: str = "m", port: int = 8080) -> Instance:
    return Instance(pid, identity_of(pid) or "", model, f"owner/{model}", "ready", float(port), port=port)


def test_this_process_is_listed_while_it_serves_and_only_its_owner_can_look(settings, registry):
    with registered(settings, model="m", ref="owner/m", log=None) as entry:
        entry.update(phase="ready", port=8080, url="http://127.0.0.1:8080")
        (found,) = registry.all()
        assert (found.pid, found.phase, found.port) == (os.getpid(), "ready", 8080)
        assert stat.S_IMODE((settings.state_dir / "running").stat().st_mode) == 0o700
    assert registry.all() == []


def test_a_process_that_is_gone_is_dropped_with_its_file(settings, registry, sleeper):
    registry.write(instance(sleeper.pid))
    assert len(registry.all()) == 1
    sleeper.kill()
    sleeper.wait()
    assert registry.all() == []
    assert list((settings.state_dir / "running").iterdir()) == []


def test_another_process_with_the_same_id_is_neither_listed_nor_signalled(registry, sleeper):
    old = replace(instance(sleeper.pid), identity="boot:12345")
    registry.write(old)
    assert not send(old, signal.SIGKILL)
    assert registry.all() == []
    assert sleeper.poll() is None


def test_a_signal_reaches_the_process_that_is_meant(sleeper):
    meant = instance(sleeper.pid)
    assert not wait_gone(meant, 0.0)
    assert send(meant, signal.SIGTERM)
    assert wait_gone(meant, 10.0)
    assert sleeper.wait() == -signal.SIGTERM
    assert not send(meant, signal.SIGTERM)


def test_a_process_is_told_from_a_later_one_with_its_id(sleeper):
    assert identity_of(sleeper.pid) == identity_of(sleeper.pid) != identity_of(os.getpid())
    assert identity_of(2**22 + 1) is None


def test_an_instance_is_found_by_name_reference_port_and_process(registry, sleeper):
    registry.write(instance(os.getpid(), "one", 8080))
    registry.write(instance(sleeper.pid, "two", 8081))
    for name in ("two", "owner/two", "8081", str(sleeper.pid)):
        assert [found.pid for found in registry.find(name)] == [sleeper.pid]
    with pytest.raises(NotFound, match="several models run") as caught:
        registry.find(None)
    assert caught.value.hint == "there are: one (port 8080), two (port 8081)"
    with pytest.raises(NotFound, match="nothing that runs is called three"):
        registry.find("three")


def test_the_only_one_needs_no_name_and_none_is_said(registry):
    with pytest.raises(NotFound, match="no model runs here"):
        registry.find(None)
    registry.write(instance(os.getpid()))
    assert len(registry.find(None)) == 1


def test_a_damaged_entry_is_dropped_but_not_while_its_process_lives(settings, registry):
    folder = settings.state_dir / "running"
    folder.mkdir(parents=True)
    gone, alive = folder / f"{2**22 + 1}.json", folder / f"{os.getpid()}.json"
    for path in (gone, alive):
        path.write_text('{"of": "another version"}')
    assert registry.all() == []
    assert (gone.exists(), alive.exists()) == (False, True)


def test_logs_are_private_found_by_name_and_the_oldest_go(registry):
    for index in range(25):
        path = registry.new_log(f"m{index % 3}")
        path = path.rename(path.with_name(path.name.replace(".log", "") + f"{index}.log"))
        os.utime(path, (index, index))
    assert len(registry.logs()) == 20
    newest = registry.new_log("owner/repo:Q4_K_M")
    assert stat.S_IMODE(newest.stat().st_mode) == 0o600
    assert registry.logs("owner/repo:Q4_K_M") == [newest]
    assert registry.logs()[0] == newest
