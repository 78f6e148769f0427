"""The order of quantizations."""

import pytest

from ggufdeploy.planner.quality import meets_floor, quality, rank


def test_order_follows_measured_divergence():
    names = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q4_0", "Q3_K_M", "Q3_K_S", "Q2_K"]
    assert sorted(names, key=lambda name: rank(name)) == names
    values = [quality(name) for name in names]
    assert values == sorted(values, reverse=True)


def test_dynamic_mixes_stand_just_above_the_plain_name():
    assert rank("Q4_K_S") > rank("UD-Q4_K_M") + 0.4
    assert rank("UD-Q4_K_M") < rank("Q4_K_M")


def test_unknown_names_have_no_figure():
    assert rank("Q9_Z") is None
    assert quality("Q9_Z") is None
    assert meets_floor("Q9_Z")


@pytest.mark.parametrize(("name", "accepted"), [("Q3_K_S", True), ("IQ3_XXS", True), ("IQ2_M", False), ("Q2_K", False)])
def test_floor(name, accepted):
    assert meets_floor(name) is accepted
