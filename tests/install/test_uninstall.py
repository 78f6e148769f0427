"""`install.sh --uninstall` removes what the manifest lists, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.install.machine import StandInMachine


@pytest.fixture
def machine(tmp_path: Path) -> StandInMachine:
    return StandInMachine(tmp_path)


@pytest.fixture
def installed(machine: StandInMachine) -> Path:
    """Lay out an installation as the manifest describes it; returns its prefix."""
    prefix = machine.home / ".local/share/ggufdeploy"
    command = prefix / "venv/bin/ggufdeploy"
    command.parent.mkdir(parents=True)
    (prefix / "venv/pyvenv.cfg").write_text("", encoding="utf-8")
    models = "owner/one:Q4_K_M\nowner/two:Q8_0"
    listing = f"if [ $1 = list ]; then echo '{models}'; exit; fi"
    command.write_text(f"#!/bin/sh\n{listing}\necho \"$@\" >>'{machine.home}/asked'\n", encoding="utf-8")
    command.chmod(0o755)
    links = machine.home / ".local/bin"
    links.mkdir()
    (links / "ggufdeploy").symlink_to(command)
    wheels = machine.home / ".cache/ggufdeploy/wheels/0.3.36-cpu-abc"
    wheels.mkdir(parents=True)
    (wheels / "engine.whl").write_bytes(b"wheel")
    (wheels.parents[1] / "header.gguf").write_bytes(b"cached")
    made = [f"made-tree\t{prefix}/venv", f"made-tree\t{wheels}", f"made-link\t{links}/ggufdeploy"]
    made += [f"made-folder\t{prefix}", f"made-folder\t{links}"]
    (prefix / "manifest").write_text("\n".join(made) + "\n", encoding="utf-8")
    return prefix


def test_everything_on_the_list_goes(machine: StandInMachine, installed: Path) -> None:
    result = machine.install("--uninstall")
    assert result.returncode == 0, result.stderr
    assert not installed.exists()
    assert not (machine.home / ".local/bin").exists()
    assert not (machine.home / ".cache/ggufdeploy/wheels/0.3.36-cpu-abc").exists()
    assert (machine.home / ".local/share").is_dir()  # it was there before
    assert (machine.home / ".cache/ggufdeploy/header.gguf").exists()
    assert not (machine.home / "asked").exists()  # the models were not touched


def test_other_files_in_the_same_folders_stay(machine: StandInMachine, installed: Path) -> None:
    (installed / "notes.txt").write_text("mine", encoding="utf-8")
    (machine.home / ".local/bin/other").write_text("mine", encoding="utf-8")
    assert machine.install("--uninstall").returncode == 0
    assert [path.name for path in installed.iterdir()] == ["notes.txt"]
    assert [path.name for path in (machine.home / ".local/bin").iterdir()] == ["other"]


def test_a_link_that_leads_elsewhere_stays(machine: StandInMachine, installed: Path) -> None:
    link = machine.home / ".local/bin/ggufdeploy"
    link.unlink()
    link.symlink_to("/bin/true")
    result = machine.install("--uninstall")
    assert link.is_symlink()
    assert "leads elsewhere" in result.stderr


@pytest.mark.parametrize("path", ["{home}/documents", "{cache}/wheels/../../../documents", "{cache}/wheels/"])
def test_a_damaged_manifest_removes_nothing_else(machine: StandInMachine, installed: Path, path: str) -> None:
    documents = machine.home / "documents"
    documents.mkdir()
    named = path.format(home=machine.home, cache=machine.home / ".cache/ggufdeploy")
    (installed / "manifest").write_text(f"made-tree\t{named}\n", encoding="utf-8")
    result = machine.install("--uninstall")
    assert documents.is_dir()
    assert (machine.home / ".cache/ggufdeploy/wheels/0.3.36-cpu-abc/engine.whl").exists()
    assert "it stays" in result.stderr


def test_purge_takes_caches_but_not_the_models_other_programs_share(machine: StandInMachine, installed: Path) -> None:
    state = machine.home / ".local/state/ggufdeploy"
    state.mkdir(parents=True)
    model = machine.home / ".cache/huggingface/hub/models--owner--one/blobs/abc"
    model.parent.mkdir(parents=True)
    model.touch()
    result = machine.install("--uninstall", "--purge")
    assert result.returncode == 0
    assert not (machine.home / ".cache/ggufdeploy").exists()
    assert not state.exists()
    assert model.exists()
    assert "which other programs share" in result.stdout


def test_uninstalling_twice_is_no_error(machine: StandInMachine, installed: Path) -> None:
    machine.install("--uninstall")
    result = machine.install("--uninstall")
    assert result.returncode == 0
    assert "nothing to uninstall" in result.stdout


def test_a_dry_run_of_it_removes_nothing(machine: StandInMachine, installed: Path) -> None:
    before = machine.files()
    result = machine.install("--uninstall", "--purge", "--dry-run")
    assert f"+ rm -rf {installed}/venv" in result.stdout
    assert f"+ rm -rf {machine.home}/.cache/ggufdeploy" in result.stdout
    assert machine.files() == before
