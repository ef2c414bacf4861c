"""A clock that tests set by hand, in place of the module `time`."""


class HandSetClock:
    """Time passes where a test adds to `now`, or the code that is tested sleeps; in seconds."""

    now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
