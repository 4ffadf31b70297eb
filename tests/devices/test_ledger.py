"""Test the counters of a session: by purpose, by thread, within a budget, and of all parts of a device."""

import threading
from typing import Any

import pytest

from astralora.devices import Budget, BudgetExceeded, DeviceSpec, Purpose, Usage
from astralora.devices.ledger import Ledger

SPEC = DeviceSpec(
    name="bench", in_features=4, out_features=3, num_controls=12, program_seconds=0.5, vector_seconds=0.01
)


class Pair:
    """Stand for a device of two chips that both carry out every operation."""

    def __init__(self) -> None:
        self.usage = Usage()

    def price(self, usage: Usage) -> Usage:
        return usage.scaled(2)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(None, None)


# -- purposes -------------------------------------------------------------------------------------


def test_counts_by_purpose_and_adds_up(ledger: Ledger) -> None:
    with ledger.under(Purpose.FORWARD):
        ledger.record(Usage(programs=1, vectors=5, seconds=0.25), None)
        ledger.record(Usage(queries=1, vectors=2, bytes=8), None)
    ledger.record(Usage(programs=3), None)
    assert ledger.by_purpose == {
        Purpose.FORWARD: Usage(programs=1, queries=1, vectors=7, seconds=0.25, bytes=8),
        Purpose.OTHER: Usage(programs=3),
    }
    assert ledger.usage == Usage(programs=4, queries=1, vectors=7, seconds=0.25, bytes=8)


def test_the_innermost_purpose_counts_and_the_outer_one_returns(ledger: Ledger) -> None:
    purposes = [ledger.purpose]
    with ledger.under("forward"):
        with ledger.under(Purpose.DRIFT):
            purposes.append(ledger.purpose)
        purposes.append(ledger.purpose)
    purposes.append(ledger.purpose)
    assert purposes == [Purpose.OTHER, Purpose.DRIFT, Purpose.FORWARD, Purpose.OTHER]


def test_an_error_ends_a_purpose_too(ledger: Ledger) -> None:
    def fail() -> None:
        with ledger.under(Purpose.DRIFT):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ledger.purpose is Purpose.OTHER


def test_a_purpose_that_does_not_exist_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="'lunch' is not a valid Purpose"), ledger.under("lunch"):
        pass
    assert ledger.purpose is Purpose.OTHER


def test_purposes_are_found_by_member_and_by_name(ledger: Ledger) -> None:
    with ledger.under("controls"):
        ledger.record(Usage(programs=1), None)
    assert ledger.by_purpose[Purpose.CONTROLS].programs == 1
    assert ledger.by_purpose == {"controls": Usage(programs=1)}


def test_every_thread_has_a_purpose_of_its_own(ledger: Ledger) -> None:
    purposes = [Purpose.CONTROLS, Purpose.INPUTS, Purpose.FIT, Purpose.DRIFT]
    inside = threading.Barrier(len(purposes) + 1, timeout=10)

    def spend(purpose: Purpose, vectors: int) -> None:
        with ledger.under(purpose):
            inside.wait()  # now all threads are inside their blocks
            ledger.record(Usage(vectors=vectors), None)
            inside.wait()

    threads = [threading.Thread(target=spend, args=(each, place + 1)) for place, each in enumerate(purposes)]
    for thread in threads:
        thread.start()
    with ledger.under(Purpose.FORWARD):
        inside.wait()
        ledger.record(Usage(vectors=10), None)
        inside.wait()
    for thread in threads:
        thread.join()
    expected = {each: Usage(vectors=place + 1) for place, each in enumerate(purposes)}
    assert ledger.by_purpose == {**expected, Purpose.FORWARD: Usage(vectors=10)}


def test_retries_are_counted_under_the_purpose_that_met_them(ledger: Ledger) -> None:
    with ledger.under(Purpose.MEASURE):
        ledger.record_retry()
        ledger.record_retry()
    ledger.record_retry()
    assert ledger.by_purpose[Purpose.MEASURE].retries == 2
    assert ledger.usage == Usage(retries=3)


# -- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(programs=1), "2 programs of a budget of 1"),
        (Budget(queries=0), "1 queries of a budget of 0"),
        (Budget(vectors=9), "10 vectors of a budget of 9"),
        (Budget(hardware_seconds=1.0), "1.1 hardware seconds of a budget of 1"),
    ],
)
def test_refuses_what_the_budget_does_not_cover(budget: Budget, reason: str) -> None:
    ledger = Ledger(budget, None)
    ledger.record(Usage(programs=1, vectors=5), None)
    with pytest.raises(BudgetExceeded, match=f"device 'bench', apply: this would need {reason}"):
        ledger.afford(SPEC, "apply", programs=1, queries=1, vectors=5)
    assert ledger.usage == Usage(programs=1, vectors=5)


def test_covers_the_last_operation_exactly() -> None:
    ledger = Ledger(Budget(programs=2, queries=1, vectors=5, hardware_seconds=1.05), None)
    ledger.record(Usage(programs=1), None)
    ledger.afford(SPEC, "apply", programs=1, queries=1, vectors=5)


def test_a_budget_may_be_replaced(ledger: Ledger) -> None:
    ledger.afford(SPEC, "program", programs=10**9)
    ledger.budget = Budget(programs=1)
    with pytest.raises(BudgetExceeded):
        ledger.afford(SPEC, "program", programs=2)
    ledger.budget = None
    ledger.afford(SPEC, "program", programs=2)


# -- devices of several parts ---------------------------------------------------------------------


def test_counts_what_the_parts_have_spent_and_not_what_was_asked() -> None:
    pair = Pair()
    ledger = Ledger(None, pair)
    before = ledger.parts_usage()
    pair.usage += Usage(programs=2, vectors=10, seconds=7.0, retries=1, bytes=80)
    added = ledger.record(Usage(programs=1, vectors=5, seconds=0.5, bytes=40), before)
    # The seconds are those of the call, since the parts may work at the same time.
    assert added == Usage(programs=2, vectors=10, seconds=0.5, retries=1, bytes=80)
    assert ledger.usage == added


def test_prices_operations_on_all_parts(ledger: Ledger) -> None:
    usage = Usage(programs=1, queries=1, vectors=5)
    assert ledger.price(usage) == usage
    assert ledger.parts_usage() is None
    assert Ledger(None, Pair()).price(usage) == Usage(programs=2, queries=2, vectors=10)


def test_holds_the_parts_to_the_budget() -> None:
    ledger = Ledger(Budget(programs=3), Pair())
    ledger.afford(SPEC, "program", programs=1)
    with pytest.raises(BudgetExceeded, match="4 programs of a budget of 3"):
        ledger.afford(SPEC, "program", programs=2)


# -- saved state ----------------------------------------------------------------------------------


def saved(**purposes: Usage) -> dict[str, dict[str, Any]]:
    ledger = Ledger(None, None)
    for purpose, usage in purposes.items():
        with ledger.under(purpose):
            ledger.record(usage, None)
    return ledger.state_dict()


def test_state_is_of_plain_names_and_numbers() -> None:
    state = saved(forward=Usage(programs=1, seconds=0.5))
    counters = {"programs": 1, "queries": 0, "vectors": 0, "seconds": 0.5, "retries": 0, "bytes": 0}
    assert state == {"forward": counters}
    assert type(next(iter(state))) is str


def test_restored_state_replaces_the_counters(ledger: Ledger) -> None:
    ledger.record(Usage(programs=100), None)
    ledger.load_state_dict(saved(forward=Usage(programs=1), drift=Usage(vectors=2)), add=False)
    assert ledger.by_purpose == {Purpose.FORWARD: Usage(programs=1), Purpose.DRIFT: Usage(vectors=2)}


def test_added_state_keeps_what_is_here(ledger: Ledger) -> None:
    with ledger.under(Purpose.FORWARD):
        ledger.record(Usage(programs=1, vectors=3), None)
    ledger.record(Usage(programs=5), None)
    ledger.load_state_dict(saved(forward=Usage(programs=1), drift=Usage(vectors=2)), add=True)
    assert ledger.by_purpose == {
        Purpose.FORWARD: Usage(programs=2, vectors=3),
        Purpose.DRIFT: Usage(vectors=2),
        Purpose.OTHER: Usage(programs=5),
    }


def test_restored_counters_go_on_counting(ledger: Ledger) -> None:
    ledger.load_state_dict(saved(forward=Usage(programs=1)), add=False)
    with ledger.under(Purpose.FORWARD):
        ledger.record(Usage(programs=1), None)
    assert ledger.usage == Usage(programs=2)


def test_a_budget_states_what_is_left_of_it() -> None:
    spent = Usage(programs=3, queries=9, vectors=20)
    left = Budget(programs=5, vectors=15, hardware_seconds=4.0).left_after(spent, SPEC)
    assert left == Budget(programs=2, vectors=0, hardware_seconds=4.0 - 3 * 0.5 - 20 * 0.01)
    assert Budget().left_after(spent, SPEC) == Budget()
