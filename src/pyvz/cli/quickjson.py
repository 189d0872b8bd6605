"""JSON for the wire, without the start-up cost of `json`.

`json` loads `re` and with it `enum`, `functools` and `collections`: half of the time that a command
line needs to start.  CPython's own accelerator module `_json`, on which `json` is built, needs none
of them.  Where an interpreter has no such module (or another form of it), `json` serves.
Source: Lib/json/decoder.py and encoder.py of CPython 3.11 to 3.13.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Rules:
    """What _json.make_scanner asks for: the settings of a plain json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012  the scanner takes and clears it

    @staticmethod
    def parse_constant(name: str) -> float:
        """Refuse NaN and Infinity: they are not JSON, and vzd sends none."""
        raise ValueError(f"{name} is not JSON")


def _default(value: object) -> object:
    raise TypeError(f"{type(value).__name__} cannot be sent")


try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    _scan = make_scanner(_Rules)  # type: ignore[arg-type]
    _plain = (None, _default, encode_basestring_ascii, None, ":", ",", False, False, False)
    _encode = make_encoder(*_plain)
    assert _scan('{"a":[1,"b",null]}', 0)[0] == {"a": [1, "b", None]}  # noqa: S101
    assert "".join(_encode({"a": [1, "b", None]}, 0)) == '{"a":[1,"b",null]}'  # noqa: S101
except (ImportError, TypeError, AttributeError, AssertionError):  # another Python
    _scan = _encode = None  # type: ignore[assignment]


def loads(text: str) -> Any:
    """Return the value that TEXT (one JSON value, no blanks around it) stands for; ValueError."""
    if _scan is None:
        import json  # noqa: PLC0415

        return json.loads(text)
    try:
        value, end = _scan(text, 0)
    except StopIteration as error:
        raise ValueError(f"not JSON at character {error.value}") from None
    if end != len(text):
        raise ValueError(f"not JSON at character {end}")
    return value


def dumps(value: object) -> str:
    """Return VALUE as one line of JSON without blanks, ASCII only; TypeError for other types."""
    if _encode is None:
        import json  # noqa: PLC0415

        return json.dumps(value, separators=(",", ":"))
    return "".join(_encode(value, 0))
