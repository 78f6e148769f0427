from hypothesis import given
from hypothesis import strategies as st

from ggufdeploy.hub.ranges import Fanout, Ranges

SMALL = Fanout(connections=3, range_bytes=10, request_bytes=40)

intervals = st.lists(st.tuples(st.integers(-5, 520), st.integers(-5, 520)), max_size=8)


def fetch_all(ranges, choices, step):
    """Let connections take, fetch and give up runs in the order `choices` says; return what each byte was fetched."""
    count, runs = {}, []
    for choice in choices:
        if choice == 0 and len(runs) < SMALL.connections and (run := ranges.take()):
            runs.append(run)
        elif choice == 1 and runs:
            ranges.release(runs.pop())
        elif runs:
            advance(ranges, runs[choice % len(runs)], step, count)
    for run in runs:
        ranges.release(run)
    while run := ranges.take():
        while run.at < run.end:
            advance(ranges, run, step, count)
        ranges.release(run)
    return count


def advance(ranges, run, step, count):
    at = run.at
    for byte in range(at, at + ranges.claim(run, step)):
        count[byte] = count.get(byte, 0) + 1
    ranges.arrived(run)


@given(intervals, st.lists(st.integers(0, 9), max_size=200), st.integers(1, 30))
def test_every_missing_byte_is_fetched_once_whatever_the_connections_do(here, choices, step):
    ranges = Ranges(500, here, SMALL)
    missing = set(range(500)) - {byte for start, end in ranges.here for byte in range(start, end)}
    count = fetch_all(ranges, choices, step)
    assert set(count) == missing
    assert set(count.values()) <= {1}
    assert ranges.here == ((0, 500),)
    assert (ranges.here_bytes, ranges.prefix_bytes) == (500, 500)


@given(intervals)
def test_what_is_here_is_disjoint_in_order_and_inside_the_file(here):
    ranges = Ranges(500, here, SMALL)
    flat = [edge for interval in ranges.here for edge in interval]
    assert flat == sorted(set(flat))
    assert all(0 <= edge <= 500 for edge in flat)


def test_the_file_is_handed_out_from_its_start_in_requests_that_shrink():
    ranges = Ranges(600, (), SMALL)
    runs = [ranges.take() for _ in range(3)]
    assert [(run.at, run.end) for run in runs] == [(0, 40), (40, 80), (80, 120)]
    rest = Ranges(600, [(0, 540)], SMALL)
    assert (rest.take().end, rest.take().end) == (550, 560)


def test_bytes_behind_a_gap_are_no_prefix():
    ranges = Ranges(100, [(0, 20), (40, 60)], SMALL)
    assert (ranges.prefix_bytes, ranges.here_bytes) == (20, 40)
    assert Ranges(100, [(40, 60)], SMALL).prefix_bytes == 0
    run = ranges.take()
    ranges.keep_prefix()
    assert ranges.here == ((0, 20),)
    assert ranges.claim(run, 1) == 0
    whole = ranges.take(to_the_end=True)
    assert (whole.at, whole.end) == (20, 100)


def test_a_connection_without_work_takes_half_of_the_longest_run():
    ranges = Ranges(200, (), Fanout(connections=1, range_bytes=10, request_bytes=200))
    first = ranges.take(to_the_end=True)
    ranges.claim(first, 20)
    second = ranges.take()
    assert (first.end, second.at, second.end) == (110, 110, 200)
    assert ranges.claim(first, 500) == 90


def test_a_run_too_short_to_share_is_left_alone():
    ranges = Ranges(15, (), SMALL)
    assert ranges.take().end == 10
    assert ranges.take().end == 15
    assert ranges.take() is None


def test_what_was_claimed_but_not_written_is_missing_after_a_release():
    ranges = Ranges(10, (), SMALL)
    run = ranges.take()
    ranges.claim(run, 5)
    ranges.release(run)
    assert ranges.take().at == 0


def test_one_connection_per_range_at_most():
    assert [SMALL.width(n) for n in (0, 9, 10, 25, 1000)] == [1, 1, 1, 2, 3]
