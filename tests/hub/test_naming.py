"""File names in the wild: a list read by hand, and publishers' conventions expanded so that the meaning is known."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufdeploy.hub.catalog import GgufFile, build_catalogue
from ggufdeploy.hub.companion import companion_kind, whole_of_piece
from ggufdeploy.hub.quantization import parse_quantization

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).parents[1] / "data" / "names"
CONVENTIONS = tomllib.loads((DATA / "conventions.toml").read_text(encoding="utf-8"))
MODELS = CONVENTIONS["models"]["names"]
Meaning = tuple[str, str]
"""(kind, quantization): kind is "model", "piece" or a companion's; quantization "none" when the name has none."""


def spell(convention: dict, quantization: str) -> str:
    text = convention.get("renamed", {}).get(quantization, quantization)
    return text.lower() if convention.get("spelling") == "lower" else text


def paths_of(convention: dict, model: str, quantization: str) -> list[str]:
    count = convention.get("shards", 1)
    text = convention["pattern"].replace("{model}", model).replace("{quant}", spell(convention, quantization))
    return [text.replace("{shard}", f"-{i:05d}-of-{count:05d}") for i in range(1, count + 1)]


def expanded() -> Iterator[tuple[str, Meaning]]:
    for model in MODELS:
        for convention in CONVENTIONS["convention"]:
            for quantization in CONVENTIONS["ladders"][convention["ladder"]]:
                for path in paths_of(convention, model, quantization):
                    yield path, ("model", quantization)
            for pattern, kind in convention.get("companions", {}).items():
                yield pattern.replace("{model}", model), (kind, "none")
        for piece in CONVENTIONS["piece"]:
            for quantization in CONVENTIONS["ladders"][piece["ladder"]]:
                for pattern in piece["patterns"]:
                    yield pattern.replace("{model}", model).replace("{quant}", quantization), ("piece", quantization)


def read_by_hand() -> Iterator[tuple[str, Meaning]]:
    with (DATA / "real.tsv").open(encoding="utf-8", newline="") as lines:
        for kind, quantization, path in csv.reader((line for line in lines if line[0] not in "#\n"), delimiter="\t"):
            yield path, (kind, quantization)


def read(path: str) -> Meaning:
    if whole_of_piece(path) is not None:
        return "piece", parse_quantization(path) or "none"
    kind = companion_kind(path)
    return (kind, "none") if kind else ("model", parse_quantization(path) or "none")


def test_at_least_5000_names_are_read_as_they_are_meant_but_for_the_listed_ones():
    real, made = list(read_by_hand()), dict(expanded())
    misread = {path: (meant, read(path)) for path, meant in [*real, *made.items()] if read(path) != meant}
    assert len(real) == len(dict(real)) >= 300, f"{len(real)} real names, {len(dict(real))} of them different"
    assert len(made) >= 5000, f"{len(made)} names made from conventions"
    assert set(misread) == {item["path"] for item in CONVENTIONS["misread"]}, f"of {len(real) + len(made)}: {misread}"
    assert all(item["reason"] for item in CONVENTIONS["misread"])


@pytest.mark.parametrize("convention", CONVENTIONS["convention"], ids=lambda convention: convention["publisher"])
def test_a_repository_in_each_convention_is_one_model_with_its_whole_ladder(convention):
    ladder = CONVENTIONS["ladders"][convention["ladder"]]
    for model in MODELS:
        companions = {
            pattern.replace("{model}", model): kind for pattern, kind in convention.get("companions", {}).items()
        }
        paths = [path for quantization in ladder for path in paths_of(convention, model, quantization)]
        found = build_catalogue(
            f"o/{model}-GGUF", "0" * 40, [GgufFile(path, 1, None) for path in [*paths, *companions]]
        )
        assert sorted(artifact.quantization for artifact in found.artifacts) == sorted(ladder), model
        assert {len(artifact.files) for artifact in found.artifacts} == {convention.get("shards", 1)}
        assert {item.file.path: item.kind for item in found.companions} == companions
        assert len(found.models) == 1, found.models
        assert found.others == found.skipped == ()
