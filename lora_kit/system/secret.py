"""A text that is never shown."""

HIDDEN = "***"


class Secret:
    """Holds a text, such as a token, and prints as ***: in messages, records, command lines and pages. `reveal()` gives it."""

    def __init__(self, value: "str | Secret") -> None:
        self._value = value._value if isinstance(value, Secret) else value

    def reveal(self) -> str:
        """The text itself: for the call that needs it, and for nothing else."""
        return self._value

    def __str__(self) -> str:
        return HIDDEN

    def __repr__(self) -> str:
        return repr(HIDDEN)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)
