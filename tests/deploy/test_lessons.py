"""What earlier loads taught, kept between runs and used by plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ggufdeploy.deploy import lessons
from ggufdeploy.deploy.local import local_source
from ggufdeploy.deploy.planning import make
from ggufdeploy.deploy.wish import Wish
from ggufdeploy.errors import BadConfig
from ggufdeploy.planner.request import Learned
from ggufdeploy.units import GIB, MIB
from tests.gguf_shapes import LLAMA_31_8B
from tests.gguf_writer import write_model
from tests.planner.models import gpu, machine

CARD = replace(gpu(12 * GIB), uuid="GPU-1")


def test_nothing_is_known_at_first(settings):
    assert lessons.load(settings) == Learned()


def test_a_lesson_is_kept_replaced_and_forgotten(settings):
    lessons.remember(settings, CARD, 100 * MIB, "grew by 100 MiB")
    lessons.remember(settings, gpu(GIB, 3), 5, "other")
    learned = lessons.remember(settings, CARD, 300 * MIB, "out of memory at 2,048 tokens")
    assert lessons.load(settings) == learned
    assert {(x.device, x.extra_margin_bytes) for x in learned.lessons} == {("GPU-1", 300 * MIB), ("CUDA3", 5)}
    assert learned.extra_bytes(CARD) == 300 * MIB
    assert all(x.when.endswith("+00:00") for x in learned.lessons)
    assert lessons.remember(settings, CARD, 0, "fine again").extra_bytes(CARD) == 0


def test_a_damaged_file_is_named_with_the_way_to_be_rid_of_it(settings):
    path = lessons.lessons_path(settings)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(BadConfig, match=r"lessons\.json is damaged") as caught:
        lessons.load(settings)
    assert f"rm {path}" in caught.value.hint


def test_a_plan_keeps_what_was_learned_free_on_a_real_machine_only(settings, tmp_path, monkeypatch):
    for name in ("Q8_0", "Q6_K", "Q4_K_M"):
        write_model(tmp_path / "m", LLAMA_31_8B, name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shadow"))  # no engine: formulas alone
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "llama_cpp.py").write_text("raise ImportError('none')")
    host = machine(CARD)
    margins = []
    for extra in (0, 2 * GIB):
        lessons.remember(settings, CARD, extra, "out of memory")
        for here in (host, replace(host, simulated=True)):
            plan = make(local_source(tmp_path / "m"), "m", Wish(context_tokens=2048), here, settings=settings).plan
            margins.append(plan.devices[0].margin_bytes)
            assert plan.devices[0].used_bytes + plan.devices[0].margin_bytes <= plan.devices[0].free_bytes
    assert margins == [GIB, GIB, 3 * GIB, GIB]
