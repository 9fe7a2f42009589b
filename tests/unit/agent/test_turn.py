"""Whoever waits for a turn gets it before one who had it and asks again."""

import threading

from memkv.agent.turn import Turn

DEADLINE_S = 30.0


def wait_until_wanted(turn: Turn) -> None:
    give_up = threading.Event()
    timer = threading.Timer(DEADLINE_S, give_up.set)
    timer.start()
    while not turn.wanted:
        assert not give_up.is_set(), "nobody waits"
    timer.cancel()


def test_who_waits_goes_before_one_who_asks_again() -> None:
    """As an agent that wipes: it gives its turn back and takes the next one at once."""
    turn, order = Turn(), []

    def call() -> None:
        with turn:
            order.append("call")

    for _ in range(50):
        with turn:
            caller = threading.Thread(target=call)
            caller.start()
            wait_until_wanted(turn)
        with turn:
            order.append("again")
        caller.join(DEADLINE_S)
    assert order == ["call", "again"] * 50


def test_turns_are_never_shared_and_none_is_lost() -> None:
    turn, inside, counted = Turn(), [], []

    def work() -> None:
        for _ in range(500):
            with turn:
                inside.append(1)
                counted.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert counted == [1] * 4000
    assert not turn.wanted


def test_a_turn_ends_with_an_error_too() -> None:
    turn = Turn()
    try:
        with turn:
            raise ValueError
    except ValueError:
        pass
    with turn:
        assert not turn.wanted
