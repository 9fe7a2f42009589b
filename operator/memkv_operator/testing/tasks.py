"""Ending tasks in tests: one that does not end is a bug, and its stack says where."""

import asyncio
import io
from typing import Any

ENDS_S = 90.0  # an operator that is told to end needs a moment for its Lease and its watches


async def end_task(task: asyncio.Task[Any], within_s: float = ENDS_S) -> None:
    """Cancel a task and wait for its end, however it ends. AssertionError with the stacks of all
    tasks when it does not: a lost cancellation would hang a test, and an operator, for ever."""
    task.cancel()
    _, pending = await asyncio.wait({task}, timeout=within_s)
    if pending:
        raise AssertionError(f"not ended {within_s:.0f} s after it was cancelled:\n{stacks()}")
    if not task.cancelled():
        task.exception()  # or asyncio complains that nobody asked


def stacks() -> str:
    """Return where each task of this loop waits."""
    text = io.StringIO()
    for task in sorted(asyncio.all_tasks(), key=lambda one: one.get_name()):
        task.print_stack(file=text)
    return text.getvalue()
