"""How many bytes all connections together make the server keep, so that no number of slow peers can fill its memory."""


class BufferedBytes:
    """Requests that are not complete yet and answers that wait for their reader, over both ports."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Counts `size` more bytes; false, and nothing is counted, where they would exceed the limit."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        """Ends what `take` began."""
        self.used -= size

    def __str__(self) -> str:
        return f"unfinished requests and unread answers take more than {self.limit} bytes (--max_buffered_bytes)"
