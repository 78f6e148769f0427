"""`pull`, `list`, `show` and `rm` on a stand-in Hub and a sealed cache."""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from pathlib import Path

import pytest

from ggufdeploy.gguf.reader import read_header_file
from ggufdeploy.hardware.machine import Machine, machine_to_json
from ggufdeploy.profiles.store import load_profiles
from ggufdeploy.units import GIB
from tests.cli.conftest import REPO
from tests.gguf_shapes import CHAT_TEMPLATE
from tests.gguf_writer import TINY_LLAMA, TINY_MIXTRAL, write_model

pytestmark = pytest.mark.slow


def sizes(hub):
    return {path.name: path.stat().st_size for path in (hub.root / REPO).iterdir()}


def cdn_requests(hub):
    return [request for request in hub.requests if request.server == "cdn"]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_pull_prints_the_path_and_the_next_command(run, hub, settings):
    done = run("pull", f"{REPO}:q8_0")

    path = Path(done.out.rstrip("\n"))
    assert done.code == 0
    assert path.name == "tiny.Q8_0.gguf"
    assert path.is_relative_to(settings.hf_cache_dir)
    assert path.read_bytes() == (hub.root / REPO / path.name).read_bytes()
    assert done.err.splitlines()[-1] == f"hint: ggufdeploy run {REPO}:q8_0"


def test_pull_fetches_all_shards_and_names_them_for_programs(run, hub):
    document = run("pull", REPO, "--quant", "F16", "--json").document

    assert (document["quantization"], document["dry_run"], len(document["files"])) == ("F16", False, 2)
    first = Path(document["path"])
    for file in document["files"]:
        content = (first.parent / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])


def test_pull_quietly_prints_the_path_alone(run, hub):
    done = run("pull", REPO, "--quant", "Q4_0", "-q")
    assert Path(done.out.rstrip("\n")).name == "tiny.Q4_0.gguf"
    assert done.err == ""


def test_pull_again_fetches_nothing(run, hub):
    run("pull", REPO, "--quant", "Q4_0")
    before = len(cdn_requests(hub))
    assert run("pull", REPO, "--quant", "Q4_0").code == 0
    assert len(cdn_requests(hub)) == before


def test_pull_dry_run_fetches_nothing(run, hub, settings):
    done = run("pull", REPO, "--quant", "F16", "--dry-run")
    document = run("pull", REPO, "--quant", "F16", "--dry-run", "--json").document

    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == [f["path"] for f in document["files"]]
    assert (document["path"], document["dry_run"]) == (None, True)
    assert document["total_bytes"] == sum(size for name, size in sizes(hub).items() if "F16" in name)
    assert not list(settings.hf_cache_dir.rglob("*.gguf"))


def test_pull_dry_run_counts_what_is_here(run, hub):
    total = sizes(hub)["tiny.Q8_0.gguf"]
    assert run("pull", f"{REPO}:Q8_0", "--dry-run", "--json").document["missing_bytes"] == total
    assert run("pull", f"{REPO}:Q8_0").code == 0
    assert run("pull", f"{REPO}:Q8_0", "--dry-run", "--json").document["missing_bytes"] == 0
    assert "all here already" in run("pull", f"{REPO}:Q8_0", "--dry-run").err


def test_pull_without_a_quantization_takes_what_a_plan_takes(run, hub):
    machine = ("--gpu", "h100-sxm", "--ctx", "512", "--slots", "1")
    document = run("pull", REPO, *machine, "--json").document
    planned = run("plan", REPO, *machine, "--json").document

    assert document["quantization"] == planned["quantization"]["name"]


@pytest.mark.parametrize("command", [["pull"], ["show"]])
def test_an_unknown_quantization_names_the_nearest_and_all_there_are(command, run, hub):
    done = run(*command, f"{REPO}:Q8_1")

    assert (done.code, done.out) == (3, "")
    assert done.err.splitlines() == [
        f"error: {REPO} has no quantization Q8_1",
        "hint: did you mean Q8_0? There are: Q4_0, Q8_0, F16",
    ]


def test_an_unknown_repository_is_not_found(run, hub):
    done = run("pull", "acme/nothing", "--json")
    assert (done.code, done.error["type"]) == (3, "not_found")


def test_a_gated_repository_ends_with_4_and_says_how_to_get_in(run, hub):
    hub.gated.add(REPO)
    done = run("pull", f"{REPO}:Q8_0")
    assert done.code == 4
    assert done.err.splitlines()[-1].startswith("hint: ")


def test_an_unreachable_hub_ends_with_6_and_is_not_called_not_found(run, monkeypatch, offline):
    done = run("pull", f"{REPO}:Q8_0", "--json")
    assert (done.code, done.error["type"]) == (6, "offline")


def test_a_local_file_is_where_it_is(run, tmp_path):
    path = write_model(tmp_path / "mine.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    done = run("pull", str(path))
    assert (done.code, done.out) == (0, f"{path}\n")


def test_list_shows_what_is_here_the_last_used_first(run, hub):
    for quantization, age_s in (("Q8_0", 7200), ("Q4_0", 30), ("F16", 3 * 86_400)):
        path = Path(run("pull", REPO, "--quant", quantization, "-q").out.rstrip("\n"))
        for file in path.parent.glob(f"*{quantization}*"):
            os.utime(file.resolve(), (time.time() - age_s,) * 2)

    rows = [line.split(maxsplit=4) for line in run("list").out.splitlines()]

    assert [row[0] for row in rows] == ["MODEL", f"{REPO}:Q4_0", f"{REPO}:Q8_0", f"{REPO}:F16"]
    assert [row[3] for row in rows[1:]] == ["1", "1", "2"]
    assert [row[4] for row in rows] == [["LAST", "USED"][1], "just now", "2 hours ago", "3 days ago"]
    assert run("list", "-q").out.split() == [row[0] for row in rows[1:]]


def test_list_for_programs(run, hub):
    path = run("pull", f"{REPO}:Q8_0", "-q").out.rstrip("\n")

    document = run("list", "--json").document

    (entry,) = document["models"]
    assert document["schema_version"] == 1
    assert entry["last_used"].endswith("+00:00")
    assert {k: v for k, v in entry.items() if k != "last_used"} == {
        "ref": f"{REPO}:Q8_0",
        "repo": REPO,
        "quantization": "Q8_0",
        "total_bytes": sizes(hub)["tiny.Q8_0.gguf"],
        "paths": [path],
    }


def test_an_empty_cache_is_no_failure(run, settings):
    assert run("list", "--json").document == {"schema_version": 1, "models": []}
    done = run("list")
    assert (done.code, done.out) == (0, "")
    assert done.err.splitlines()[0] == f"no models in {settings.hf_cache_dir}"


def test_rm_asks_and_without_an_answer_deletes_nothing(run, hub):
    run("pull", f"{REPO}:Q8_0")

    done = run("rm", f"{REPO}:Q8_0")

    assert done.code == 2
    assert done.err.splitlines()[-1] == "hint: add --yes to go ahead"
    assert run("list", "-q").out.split() == [f"{REPO}:Q8_0"]


def test_rm_deletes_one_quantization_or_all_of_a_repository(run, hub, settings):
    for quantization in ("Q8_0", "Q4_0", "F16"):
        run("pull", REPO, "--quant", quantization)

    one = run("rm", f"{REPO}:Q8_0", "--yes")
    assert (one.code, one.out) == (0, f"freed {sizes(hub)['tiny.Q8_0.gguf'] / 1000:.1f} kB: {REPO}:Q8_0\n")
    assert sorted(run("list", "-q").out.split()) == [f"{REPO}:F16", f"{REPO}:Q4_0"]

    rest = run("rm", REPO, "-y", "--json").document
    assert rest["freed_bytes"] == sum(size for name, size in sizes(hub).items() if "Q8_0" not in name)
    assert not list(settings.hf_cache_dir.rglob("*.gguf"))


def test_rm_dry_run_says_how_much_and_deletes_nothing(run, hub):
    run("pull", f"{REPO}:Q8_0")

    document = run("rm", REPO, "--dry-run", "--json").document

    assert (document["freed_bytes"], document["dry_run"]) == (sizes(hub)["tiny.Q8_0.gguf"], True)
    assert run("list", "-q").out.split() == [f"{REPO}:Q8_0"]


def test_rm_of_what_is_not_here_names_the_nearest_and_deletes_nothing(run, hub):
    run("pull", f"{REPO}:Q8_0")
    done = run("rm", f"{REPO}:Q8_0", f"{REPO}:Q4_1", "--yes")
    assert done.code == 3
    assert done.err.splitlines() == [f"error: {REPO}:Q4_1 is not on this disk", f"hint: did you mean {REPO}:Q8_0?"]
    assert run("list", "-q").out.split() == [f"{REPO}:Q8_0"]


def test_rm_leaves_files_of_the_user_alone(run, tmp_path):
    path = write_model(tmp_path / "mine.gguf", TINY_LLAMA, "Q8_0")
    assert run("rm", str(path), "--yes").code == 2
    assert path.exists()


@pytest.fixture
def packaged(settings):
    """The demo model as if it had been fetched: a sparse file of its size at its place."""
    source = load_profiles(settings).find("smollm2-135m").pypi
    assert source is not None
    path = settings.cache_dir / "pypi" / f"{source.package}-{source.version}" / source.file.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(source.n_bytes)
    return path


def test_a_model_out_of_a_package_is_listed_and_removed_too(run, packaged):
    (entry,) = run("list", "--json").document["models"]
    assert (entry["ref"], entry["repo"], entry["paths"]) == ("smollm2-135m:Q4_1", None, [str(packaged)])

    done = run("rm", "smollm2-135m:q4_1", "--yes")

    assert done.code == 0
    assert not packaged.exists()
    assert run("list", "-q").out == ""


H100 = ("--gpu", "h100-sxm", "--ram", "64GiB")


def test_show_lists_the_quantizations_of_a_repository_the_largest_first(run, hub):
    done = run("show", REPO, *H100)
    document = run("show", REPO, *H100, "--json").document

    rows = [line.split(maxsplit=7) for line in done.out.splitlines()]
    assert rows[0] == ["QUANTIZATION", "SIZE", "MEMORY", "FILES", "BITS", "FITS"]
    assert [(row[0], row[5]) for row in rows[1:]] == [("F16", "2"), ("Q8_0", "1"), ("Q4_0", "1")]
    assert document["repo"] == REPO
    assert len(document["revision"]) == 40
    assert [entry["total_bytes"] for entry in document["quantizations"]] == sorted(
        (entry["total_bytes"] for entry in document["quantizations"]), reverse=True
    )


def test_show_says_what_fits_from_64_kib_of_one_file(run, hub):
    document = run("show", REPO, *H100, "--json").document

    assert len(cdn_requests(hub)) == 1
    assert 0 < document["header_fetched_bytes"] <= 65_536
    assert (document["context_tokens"], document["memory_source"]) == (TINY_LLAMA.context_tokens, "estimate")
    for entry in document["quantizations"]:
        fit = entry["fits"]
        assert (fit["verdict"], fit["n_gpu_layers"], fit["n_layers_total"]) == ("gpu", 3, 3)
        assert 70 << 30 < fit["free_bytes"] < 80 << 30
        assert fit["short_bytes"] == 0
    assert document["machine"]["devices"][0]["catalogue_id"] == "h100-sxm"


def test_show_says_it_in_words_and_labels_it_an_estimate(run, hub):
    done = run("show", REPO, *H100, "--ctx", "1k")

    assert all("GPU, 7" in line and line.endswith("GiB free at 1k") for line in done.out.splitlines()[1:])
    assert "FITS is an estimate for NVIDIA H100" in done.err
    assert "at 1,024 tokens of context" in done.err
    assert "of headers in 1 request, nothing else was downloaded" in done.err
    assert done.err.splitlines()[-1] == f"hint: ggufdeploy plan {REPO}"


def test_show_without_a_gpu_speaks_of_the_cpu(run, hub, tmp_path):
    file = tmp_path / "machine.json"
    file.write_text(machine_to_json(Machine((), 64 * GIB, 60 * GIB, 8, 16)))
    done = run("show", REPO, "--machine", str(file), "--ctx", "1k")
    assert all("CPU, 5" in line and line.endswith("GiB free at 1k") for line in done.out.splitlines()[1:])
    small = run("show", REPO, "--machine", str(file), "--ram", "1GiB")
    assert all(line.endswith(" no") for line in small.out.splitlines()[1:])


def test_show_a_second_time_reads_nothing(run, hub):
    run("show", REPO, *H100)
    hub.requests.clear()
    document = run("show", REPO, *H100, "--json").document
    assert not cdn_requests(hub)
    assert (document["header_fetched_bytes"], document["header_source"]) == (0, "cache")


def test_show_lists_sizes_where_no_header_may_be_read(run, hub):
    hub.fault("status", "*.gguf", status=403, headers={"X-Error-Code": "GatedRepo"}, times=None)
    done = run("show", REPO, *H100)
    document = run("show", REPO, *H100, "--json").document

    assert done.code == 0
    assert all(line.endswith("?") for line in done.out.splitlines()[1:])
    assert "warning: what fits is not known: " in done.err
    assert [entry["fits"] for entry in document["quantizations"]] == [None] * 3
    assert document["fits_unknown_because"]


def test_show_offline_judges_by_the_profile(run, offline):
    document = run("show", "mixtral-8x22b", *H100, "--json").document
    fits = {entry["quantization"]: entry["fits"]["verdict"] for entry in document["quantizations"]}
    assert (fits["Q2_K"], fits["Q4_K_M"]) == ("gpu", "offload")
    assert (document["header_source"], document["header_fetched_bytes"]) == ("profile", 0)


def test_show_refuses_a_context_beyond_training(run, hub):
    done = run("show", REPO, *H100, "--ctx", "1m")
    assert done.code == 2
    assert "2,048 tokens this model was trained for" in done.err


def test_show_of_a_directory_says_what_fits_and_how_to_go_on(run, tmp_path):
    folder = tmp_path / "my models"
    for quantization in ("Q8_0", "Q4_0"):
        write_model(folder / f"tiny.{quantization}.gguf", TINY_LLAMA, quantization)
    done = run("show", str(folder), *H100)
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == ["Q8_0", "Q4_0"]
    assert all(" GPU, 7" in line for line in done.out.splitlines()[1:])
    assert done.err.splitlines()[-1] == f"hint: ggufdeploy plan '{folder}'"


def test_show_names_what_is_not_offered(run, hub):
    (hub.root / REPO / "mmproj-F16.gguf").write_bytes(b"GGUF" + bytes(100))
    document = run("show", REPO, *H100, "--json").document
    assert [entry["path"] for entry in document["skipped"]] == ["mmproj-F16.gguf"]
    assert "-v names them" in run("show", REPO, *H100).err
    assert "not offered: mmproj-F16.gguf (" in run("show", REPO, *H100, "-v").err


def test_show_tells_what_a_remote_quantization_holds_without_downloading_it(run, hub, settings):
    document = run("show", f"{REPO}:F16", "--json").document

    assert (document["facts"]["architecture"], document["facts"]["n_layers"]) == ("llama", TINY_LLAMA.n_layers)
    assert not list(settings.hf_cache_dir.rglob("*.gguf"))


def test_show_tells_what_a_file_holds(run, tmp_path):
    path = write_model(tmp_path / "tiny.Q8_0.gguf", TINY_MIXTRAL, "Q8_0")
    header = read_header_file(path)

    facts = run("show", str(path), "--json").document["facts"]
    text = run("show", str(path)).out

    assert facts == {
        "name": "tiny-mixtral",
        "architecture": "llama",
        "quantization": "Q8_0",
        "n_params": facts["n_params"],
        "bits_per_weight": pytest.approx(header.tensor_bytes * 8 / facts["n_params"], abs=0.005),
        "n_layers": TINY_MIXTRAL.n_layers,
        "n_experts": TINY_MIXTRAL.n_experts,
        "n_experts_used": TINY_MIXTRAL.n_experts_used,
        "embedding_length": TINY_MIXTRAL.n_embd,
        "n_heads": TINY_MIXTRAL.n_heads,
        "n_kv_heads": TINY_MIXTRAL.n_kv_heads,
        "n_vocab": TINY_MIXTRAL.n_vocab,
        "context_train_tokens": TINY_MIXTRAL.context_tokens,
        "sliding_window_tokens": None,
        "n_tensors": len(header.tensors),
        "tensors_bytes": header.tensor_bytes,
        "experts_bytes": sum(t.n_bytes for t in header.tensors if "_exps" in t.name),
        "chat_template_sha256": hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest(),
    }
    assert "architecture   llama" in text
    assert f"experts        {TINY_MIXTRAL.n_experts}, {TINY_MIXTRAL.n_experts_used} per token" in text
    assert "sliding window" not in text


def test_show_of_a_damaged_file_says_where(run, tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    done = run("show", str(path))
    assert done.code == 1
    assert "is not a usable GGUF file" in done.err


def test_show_of_a_missing_file(run, tmp_path):
    done = run("show", str(tmp_path / "missing.gguf"))
    assert (done.code, done.out) == (3, "")


def test_a_misspelt_model_names_the_nearest_in_every_command(run, hub):
    for command in (["show"], ["pull"], ["plan"], ["rm", "--yes"]):
        done = run(*command, "mixtrl-8x22b")
        assert done.code == 3, command
        assert "did you mean mixtral-8x22b?" in done.err, command


def test_a_second_build_is_pulled_listed_and_removed_by_its_file(run, hub):
    other = write_model(hub.root / REPO / "tiny.Q8_0-mtp.gguf", TINY_MIXTRAL, "Q8_0")
    run("pull", f"{REPO}:Q8_0")
    pulled = run("pull", f"{REPO}/{other.name}", "--json").document
    assert pulled["files"][0]["path"] == other.name
    assert sorted(run("list", "-q").out.split()) == [f"{REPO}/{other.name}", f"{REPO}:Q8_0"]

    assert run("rm", f"{REPO}/{other.name}", "--yes").code == 0

    (left,) = run("list", "--json").document["models"]
    assert left["paths"][0].endswith("tiny.Q8_0.gguf")


@pytest.mark.parametrize("command", [["plan"], ["pull"], ["show"]])
def test_raw_pieces_end_with_3_and_one_sentence_on_what_to_do(command, run, hub):
    for number in (1, 2):
        (hub.root / REPO / f"tiny.Q6_K.gguf.part{number}of2").write_bytes(b"GGUF")
    for words in ([f"{REPO}:Q6_K"], [f"{REPO}/tiny.Q6_K.gguf.part1of2"], [REPO, "--quant", "Q6_K"]):
        if command == ["show"] and "--quant" in words:
            continue
        done = run(*command, *words)
        assert (done.code, done.out) == (3, "")
        assert "tiny.Q6_K.gguf.part1of2" in done.err
        assert "a raw piece of a file, which llama.cpp cannot load" in done.err.splitlines()[-2]
        assert f"hint: take another quantization: ggufdeploy run {REPO} --quant Q" in done.err


@pytest.mark.parametrize("command", [["plan"], ["pull", "--quant", "Q4_0"], ["show"]])
def test_what_was_chosen_for_the_user_is_said_on_stderr(command, run, hub):
    write_model(hub.root / REPO / "other-1b-Q8_0.gguf", TINY_LLAMA, "Q8_0")
    done = run(*command, REPO)
    assert done.code == 0
    assert f"{REPO} holds 2 models; this is tiny, the others are other-1b" in done.err
    assert "holds 2 models" not in run(*command, REPO, "--json").err


def test_the_quantization_may_be_spelt_as_in_file_names(run, hub):
    document = run("plan", REPO, "--quant", "q4-0", "--ctx", "512", "--slots", "1", "--json").document
    assert document["quantization"]["name"] == "Q4_0"


def test_show_keeps_companions_and_second_builds_apart(run, hub):
    for name in ("mmproj-F16.gguf", "mtp-tiny-Q8_0.gguf"):
        (hub.root / REPO / name).write_bytes(b"GGUF")
    write_model(hub.root / REPO / "tiny.Q8_0-fp16.gguf", TINY_LLAMA, "Q8_0")
    document = run("show", REPO, "--json").document
    assert [(item["kind"], item["path"]) for item in document["companions"]] == [
        ("projector", "mmproj-F16.gguf"),
        ("draft", "mtp-tiny-Q8_0.gguf"),
    ]
    assert [item["files"][0]["path"] for item in document["others"]] == ["tiny.Q8_0-fp16.gguf"]
    assert (
        f"one more build or model is had by the file's name, as in {REPO}/tiny.Q8_0-fp16.gguf" in run("show", REPO).err
    )


def test_the_next_command_can_be_pasted(run, hub):
    (hub.root / REPO / "tiny.Q8_0.gguf").rename(hub.root / REPO / "tiny it's.Q8_0.gguf")
    done = run("pull", f"{REPO}/tiny it's.Q8_0.gguf", "--revision", "main")
    assert done.code == 0
    words = shlex.split(done.err.splitlines()[-1].removeprefix("hint: "))
    assert words == ["ggufdeploy", "run", f"{REPO}/tiny it's.Q8_0.gguf", "--revision", "main"]


def test_commands_run_also_without_a_stderr(run, hub, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert run("pull", f"{REPO}:Q8_0").code == 0
    assert run("pull", f"{REPO}:Q2_K").code == 3
