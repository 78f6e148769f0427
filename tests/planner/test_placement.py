"""llama.cpp's layer rule."""

from hypothesis import given
from hypothesis import strategies as st

from ggufdeploy.planner.placement import Placement, on_cpu


def test_n_gpu_layers_is_the_output_layer_plus_the_last_blocks():
    placement = Placement(30, (10,))
    assert placement.n_gpu_layers == 10
    assert placement.n_layers_total == 31
    assert placement.layers_on(0) == range(21, 30)
    assert placement.host_layers == range(21)
    assert placement.output_device == 0
    assert placement.strategy == "layers"


def test_one_gpu_layer_is_the_output_layer_alone():
    placement = Placement(30, (1,))
    assert list(placement.layers_on(0)) == []
    assert placement.host_layers == range(30)


def test_all_items_on_gpus_is_full_and_leaves_no_host_layer():
    placement = Placement(56, (57,))
    assert placement.strategy == "full"
    assert list(placement.host_layers) == []


def test_nothing_on_gpus_is_cpu():
    placement = on_cpu(56, 2)
    assert placement.strategy == "cpu"
    assert placement.output_device is None
    assert placement.host_layers == range(56)


def test_experts_of_the_first_layers_stay_on_the_host_by_llama_cpps_own_pattern():
    placement = Placement(4, (5,)).with_experts_on_host(2)
    assert placement.strategy == "experts"
    assert placement.overrides() == (
        r"blk\.0\.ffn_(up|down|gate|gate_up)_(ch|)exps",
        r"blk\.1\.ffn_(up|down|gate|gate_up)_(ch|)exps",
    )
    assert [placement.experts_on_host(i) for i in range(4)] == [True, True, False, False]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 60))
def test_every_block_is_in_exactly_one_place(items, n_layers):
    total = sum(items)
    if total > n_layers + 1:
        return
    placement = Placement(n_layers, tuple(items))
    placed = list(placement.host_layers)
    for device in range(len(items)):
        placed += placement.layers_on(device)
    assert sorted(placed) == list(range(n_layers))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 60))
def test_tensor_split_gives_each_item_the_device_the_placement_says(items, n_layers):
    """llama.cpp: upper_bound(cumulated shares / sum, (item - first) / items on GPUs)."""
    total = sum(items)
    if not 0 < total <= n_layers + 1:
        return
    placement = Placement(n_layers, tuple(items))
    shares = placement.tensor_split
    bounds = [sum(shares[: i + 1]) / sum(shares) for i in range(len(shares))]
    first = n_layers + 1 - total
    for item in range(first, n_layers):
        device = next(i for i, bound in enumerate(bounds) if bound > (item - first) / total)
        assert item in placement.layers_on(device)
