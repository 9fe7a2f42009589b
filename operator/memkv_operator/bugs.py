"""Says errors that nobody foresaw, where work on everything else goes on."""

import logging


class BugLog:
    """Logs each with its traceback, once as long as it stays the same."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[str, str] = {}

    def say(self, of: str, error: Exception, message: str) -> None:
        """Log an error. `of`: the pool or node that it is about; `message` says what goes on."""
        if self._said.get(of) != repr(error):
            self._said[of] = repr(error)
            self._log.error("%s", message, exc_info=error)

    def over(self, of: str) -> None:
        """Note that it went well this time, or that there is no such pool or node any more."""
        self._said.pop(of, None)
