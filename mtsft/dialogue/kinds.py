"""What a JSON value is, in words for an error."""

_NAMES = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}


def kind(value: object) -> str:
    """What a JSON value is, in words for an error."""
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    return _NAMES.get(type(value), f"of the type {type(value).__name__}")
