from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufdeploy.errors import BadValue
from ggufdeploy.hub.ref import NameRef, PathRef, RepoRef, parse_ref

ACCEPTED = {
    "mixtral-8x22b": NameRef("mixtral-8x22b"),
    " mixtral-8x22b ": NameRef("mixtral-8x22b"),
    "mixtral-8x22b:Q4_K_S": NameRef("mixtral-8x22b", "Q4_K_S"),
    "mixtral-8x22b:q4_k_s": NameRef("mixtral-8x22b", "Q4_K_S"),
    "mixtral:8x22b": NameRef("mixtral:8x22b"),
    "smollm2:135m:Q8_0": NameRef("smollm2:135m", "Q8_0"),
    "mixtral-8x22b:Q4_K_X": NameRef("mixtral-8x22b", "Q4_K_X"),
    "owner/repo": RepoRef("owner/repo"),
    "owner/repo:UD-Q4_K_XL": RepoRef("owner/repo", "UD-Q4_K_XL"),
    "owner/repo:q6": RepoRef("owner/repo", "Q6_K"),
    "owner/repo@v1.0:Q4_0": RepoRef("owner/repo", "Q4_0", None, "v1.0"),
    "owner/repo/file.gguf": RepoRef("owner/repo", None, "file.gguf"),
    "owner/repo/BF16/file-00001-of-00002.gguf": RepoRef("owner/repo", None, "BF16/file-00001-of-00002.gguf"),
    "hf.co/owner/repo:Q4_0": RepoRef("owner/repo", "Q4_0"),
    "huggingface.co/owner/repo": RepoRef("owner/repo"),
    "hf://owner/repo": RepoRef("owner/repo"),
    "hf://owner/repo@main/file.gguf": RepoRef("owner/repo", None, "file.gguf", "main"),
    "hf://owner/repo:Q4_0": RepoRef("owner/repo", "Q4_0"),
    "https://huggingface.co/owner/repo": RepoRef("owner/repo"),
    "https://hf.co/owner/repo/": RepoRef("owner/repo"),
    "https://huggingface.co/owner/repo/tree/main": RepoRef("owner/repo", None, None, "main"),
    "https://huggingface.co/owner/repo/tree/main/UD-Q4_K_XL": RepoRef("owner/repo", "UD-Q4_K_XL", None, "main"),
    "https://huggingface.co/owner/repo/blob/main/a%20b.gguf": RepoRef("owner/repo", None, "a b.gguf", "main"),
    "https://huggingface.co/owner/repo/resolve/v2/x/f.gguf?download=true": RepoRef(
        "owner/repo", None, "x/f.gguf", "v2"
    ),
    "https://huggingface.co/owner/repo/blob/refs/pr/3/f.gguf": RepoRef("owner/repo", None, "f.gguf", "refs/pr/3"),
    "https://huggingface.co/owner/repo?show_file_info=f.Q4_0.gguf": RepoRef("owner/repo", None, "f.Q4_0.gguf"),
    "https://huggingface.co/owner/repo/tree/main/DeepSeek-R1-UD-IQ1_S/": RepoRef(
        "owner/repo", "UD-IQ1_S", None, "main"
    ),
    "https://huggingface.co/owner/repo/tree/main/f.Q4_0.gguf": RepoRef("owner/repo", None, "f.Q4_0.gguf", "main"),
    "https://huggingface.co/owner/repo/raw/main/f.Q4_0.gguf#top": RepoRef("owner/repo", None, "f.Q4_0.gguf", "main"),
    "https://huggingface.co/owner/repo?library=llama-cpp-python": RepoRef("owner/repo"),
    "HTTPS://HuggingFace.co/owner/repo": RepoRef("owner/repo"),
    "huggingface.co/owner/repo/resolve/main/f.gguf?download=true": RepoRef("owner/repo", None, "f.gguf", "main"),
    "hf.co/owner/repo/tree/main/Q4_K_M": RepoRef("owner/repo", "Q4_K_M", None, "main"),
    "hf.co/owner/repo/f.Q4_0.gguf": RepoRef("owner/repo", None, "f.Q4_0.gguf"),
    "hf.co/owner/repo/": RepoRef("owner/repo"),
    "hf:owner/repo:Q4_0": RepoRef("owner/repo", "Q4_0"),
    "hf:owner/repo/f.gguf": RepoRef("owner/repo", None, "f.gguf"),
    "huggingface://owner/repo/f.gguf": RepoRef("owner/repo", None, "f.gguf"),
    "owner/repo/": RepoRef("owner/repo"),
    "owner/repo/UD-Q4_K_XL": RepoRef("owner/repo", "UD-Q4_K_XL"),
    "owner/repo/UD-Q4_K_XL/": RepoRef("owner/repo", "UD-Q4_K_XL"),
    "owner/repo:f.Q4_0.gguf": RepoRef("owner/repo", None, "f.Q4_0.gguf"),
    "owner/repo@v1:f.gguf": RepoRef("owner/repo", None, "f.gguf", "v1"),
    "owner/repo/a b.gguf": RepoRef("owner/repo", None, "a b.gguf"),
    "owner/repo/m.Q8_0.gguf.part1of2": RepoRef("owner/repo", None, "m.Q8_0.gguf.part1of2"),
    "https://huggingface.co/owner/repo/resolve/main/m.Q8_0.gguf-split-a?download=true": RepoRef(
        "owner/repo", None, "m.Q8_0.gguf-split-a", "main"
    ),
    "~model.gguf": PathRef(Path("~model.gguf")),
    "./model.gguf": PathRef(Path("model.gguf")),
    "/models/x.gguf": PathRef(Path("/models/x.gguf")),
    "models/x.gguf": PathRef(Path("models/x.gguf")),
    "x.gguf": PathRef(Path("x.gguf")),
    "../x": PathRef(Path("../x")),
}


@pytest.mark.parametrize(("text", "expected"), ACCEPTED.items(), ids=ACCEPTED)
def test_every_way_to_name_a_model(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_ref(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "-x", "--help", "a b", "a\nb", "a\0b", "name:", ":Q4_0", "x" * 2000,
        "owner/", "owner//repo", "owner/../x", "owner/repo:", "owner/repo:Q4/0", "owner/repo:Q4 0",
        "owner/repo/../../etc/passwd.gguf", "owner/repo/file.bin", "owner/repo@/f.gguf", "owner/repo@../x",
        "owner/re--po", "owner/repo.", "-owner/repo", "öwner/repo", "owner/$(reboot)", "owner/repo;ls",
        "https://example.com/owner/repo", "https://user:pass@huggingface.co/owner/repo", "ftp://huggingface.co/a/b",
        "https://huggingface.co/datasets/owner/repo", "https://huggingface.co/owner", "file:///etc/passwd",
        "https://huggingface.co/owner/repo/blob/main/..%2F..%2Fetc.gguf", "https://huggingface.co/owner/repo/commits/main",
        "https://huggingface.co/owner/repo/tree/main/docs", "https://[bad/owner/repo", "hf://", "hf://owner",
        "https://huggingface.co/owner/repo?show_file_info=../x.gguf", "https://huggingface.co.evil.com/a/b",
        "https://huggingface.co/owner/repo/blob/main", "https://huggingface.co/owner/repo/discussions/7",
        "owner/repo/docs", "hf:", "hf:-x", "owner/repo:../x.gguf", "ollama://library/llama3",
        "hf.co/datasets/owner/repo",
    ],
)  # fmt: skip
def test_malformed_and_hostile_references_are_refused_with_a_hint(text):
    with pytest.raises(BadValue) as caught:
        parse_ref(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("pasted", "alone"),
    [
        ("ollama run hf.co/owner/repo:Q4_K_M", "hf.co/owner/repo:Q4_K_M"),
        ("hf download owner/repo f.gguf --local-dir .", "owner/repo"),
        ("llama-server -hf owner/repo:Q8_0", "owner/repo:Q8_0"),
        ("owner/repo Q4_K_M", "owner/repo"),
    ],
)
def test_a_pasted_command_is_refused_with_the_model_in_it(pasted, alone):
    with pytest.raises(BadValue) as caught:
        parse_ref(pasted)
    assert caught.value.hint == f"write the model alone: {alone}"


def test_a_folder_with_gguf_files_is_a_path_and_one_without_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("full", "empty", "owner/repo"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "full" / "m.gguf").write_bytes(b"")
    assert parse_ref("full") == PathRef(Path("full"))
    assert parse_ref("empty") == NameRef("empty")
    assert parse_ref("owner/repo") == RepoRef("owner/repo")


def test_a_tree_with_a_folder_per_quantization_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree" / "BF16").mkdir(parents=True)
    (tmp_path / "tree" / "BF16" / "m-00001-of-00001.gguf").write_bytes(b"")
    assert parse_ref("tree") == PathRef(Path("tree"))


def test_a_name_longer_than_a_file_name_may_be_is_no_crash():
    assert isinstance(parse_ref("x" * 100), NameRef)
    with pytest.raises(BadValue):
        parse_ref("x" * 300)


def test_a_file_on_disk_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "m.gguf").write_bytes(b"")
    assert parse_ref("a/b/m.gguf") == PathRef(Path("a/b/m.gguf"))


def test_the_home_directory_is_expanded(sealed_home):
    assert parse_ref("~/m.gguf") == PathRef(sealed_home / "m.gguf")


@given(st.text(alphabet=st.sampled_from("aZ0./:@-_~%\\?#=& \0\ngu"), max_size=40) | st.text(max_size=40))
def test_no_text_gets_past_as_anything_but_a_safe_reference(text):
    for prefix in (
        "",
        "https://huggingface.co/o/r/blob/",
        "hf://",
        "hf:",
        "hf.co/",
        "hf.co/o/r/tree/main/",
        "o/r/",
        "~",
    ):
        try:
            reference = parse_ref(prefix + text)
        except BadValue:
            continue
        if isinstance(reference, RepoRef):
            parts = [*reference.repo.split("/"), *(reference.file or "x").split("/"), reference.revision or "x"]
            assert all(part not in ("", ".", "..") and "\0" not in part and "\\" not in part for part in parts)
            assert len(reference.repo.split("/")) == 2
