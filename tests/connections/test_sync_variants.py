"""How :mod:`.every_type` makes a test of a sync type from an async body."""

from __future__ import annotations

import pytest

from .every_type import AsyncCase, sync_and_async

CONNECTION_TYPES = ("normal", "async")


async def assert_something_wrong(case: AsyncCase) -> None:
    async with await case.open() as conn:
        found = await case.value(conn, "SELECT 41")
    assert found == 42


def test_a_failing_assertion_explains_the_comparison(case: AsyncCase) -> None:
    test = sync_and_async(assert_something_wrong)
    with pytest.raises(AssertionError, match=r"^assert 41 == 42$"):
        test(case=case)


def test_a_failing_assertion_of_the_case_itself_explains_the_comparison(case: AsyncCase) -> None:
    pool = FakePool()
    with pytest.raises(AssertionError, match=r"assert 1 == 0"):
        case.assert_nothing_is_out(pool)


class FakePool:
    """Somebody waits for ever."""

    def get_stats(self) -> dict[str, int]:
        return {"pool_available": 2, "pool_size": 2, "requests_waiting": 1}
