"""How the value of one parameter is written: small objects with parse() and format().

``parse(text)`` takes the stored text (of ve.conf) to a typed, immutable value and raises BadValue;
``format(value)`` gives exactly the text that is stored.  For every value v that parse() can give,
``parse(format(v)) == v``.  Lists, devices, interfaces and disks are in grammar_list, grammar_net
and grammar_disk.  Sources: config.md section 2; libvzctl, lib/util.c (parse_ul_sfx).
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol, TypeVar

from pyvz.errors import BadValue
from pyvz.model.environment import canonical_uuid, check_name
from pyvz.units import PAGE_SIZE, UNLIMITED, parse_size

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CPU_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_HOSTNAME_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
MAX_CPUS = 8192  # NR_CPUS of the largest distribution kernels


class Grammar(Protocol[T]):
    """What every kind of value can do."""

    def parse(self, text: str) -> T:
        """Return the value that TEXT stands for; raise BadValue."""

    def format(self, value: T) -> str:
        """Return the stored text of VALUE."""


class Pair(NamedTuple):
    """A barrier (or soft limit) and a limit (or hard limit), in stored units."""

    barrier: int
    limit: int


class YesNo:
    """``yes`` or ``no``; ``on`` and ``off`` are read too."""

    def parse(self, text: str) -> bool:
        """Return True for yes."""
        word = text.strip().lower()
        if word in {"yes", "on"}:
            return True
        if word in {"no", "off"}:
            return False
        raise BadValue(f"'{text}' is neither yes (on) nor no (off)")

    def format(self, value: bool) -> str:  # noqa: FBT001
        """Return yes or no."""
        return "yes" if value else "no"


class Integer(NamedTuple):
    """A whole number from `low` to `high`."""

    low: int = 0
    high: int = UNLIMITED

    def parse(self, text: str) -> int:
        """Return the number."""
        text = text.strip()
        # isdigit() alone would let superscripts pass; 20 digits bound the work.
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise BadValue(f"'{text}' is not a whole number{self._range()}")
        number = int(text)
        if not self.low <= number <= self.high:
            raise BadValue(f"{text} is out of range: give a number{self._range()}")
        return number

    def format(self, value: int) -> str:
        """Return the decimal digits."""
        return str(value)

    def _range(self) -> str:
        if self.high >= UNLIMITED:
            return f" of {self.low} or more" if self.low else ""
        return f" from {self.low} to {self.high}"


class Factor:
    """A number that may have a fraction ("1.5")."""

    def parse(self, text: str) -> float:
        """Return the number."""
        text = text.strip()
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
            raise BadValue(f"'{text}' is not a number (like 1.5)")
        return float(text)

    def format(self, value: float) -> str:
        """Return the number without needless zeros (never in exponent notation)."""
        return f"{value:.9f}".rstrip("0").rstrip(".")


class Amount(NamedTuple):
    """One amount, counted in `unit` bytes (0: a plain count, which takes no suffix)."""

    unit: int = 0
    name: str = "number"

    def parse(self, text: str) -> int:
        """Return the amount in units; sizes that are no whole number of units are rounded up."""
        text = text.strip()
        if text.lower() == "unlimited":
            return UNLIMITED
        if text.isascii() and text.isdigit():
            return min(int(text[:32]), UNLIMITED)
        if not self.unit:
            raise BadValue(f"'{text}' is not a {self.name}: give a whole number or 'unlimited'")
        size = parse_size(text, default_unit=self.unit, pages=self.unit == PAGE_SIZE)
        return UNLIMITED if size >= UNLIMITED else -(-size // self.unit)

    def format(self, value: int) -> str:
        """Return the decimal digits (unlimited is written as LONG_MAX)."""
        return str(value)


class Amounts(NamedTuple):
    """``barrier[:limit]``; the limit is the barrier when it is left out."""

    amount: Amount

    def parse(self, text: str) -> Pair:
        """Return both amounts in stored units."""
        barrier, colon, limit = text.partition(":")
        first = self.amount.parse(barrier)
        return Pair(first, self.amount.parse(limit) if colon else first)

    def format(self, value: Pair) -> str:
        """Return ``barrier:limit``, as the original always stores it."""
        return f"{value.barrier}:{value.limit}"


PAGES = Amounts(Amount(PAGE_SIZE, "number of pages"))
BYTES = Amounts(Amount(1, "number of bytes"))
KIBIBYTES = Amounts(Amount(1024, "size"))
COUNT = Amounts(Amount())


class Choice(NamedTuple):
    """One of a few words; `also` maps other spellings to them."""

    words: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()

    def parse(self, text: str) -> str:
        """Return the word."""
        word = text.strip().lower()
        word = dict(self.also).get(word, word)
        if word not in self.words:
            raise BadValue(f"'{text}' is not one of {', '.join(self.words)}")
        return word

    def format(self, value: str) -> str:
        """Return the word."""
        return value


class Text:
    """One line of text without control characters; blanks around it do not count."""

    def parse(self, text: str) -> str:
        """Return the text."""
        if _CONTROL.search(text):
            raise BadValue(f"{text!r} holds control characters")
        return text.strip()

    def format(self, value: str) -> str:
        """Return the text."""
        return value


class EscapedText:
    """Free text (DESCRIPTION): all but letters, digits, ``-_.`` and non-ASCII stored as =XX.

    Source: libvzctl, vzctl_escapestr_eq and vzctl2_unescapestr_eq.
    """

    def parse(self, text: str) -> str:
        """Return the text; =XX that is not hexadecimal stands for itself."""
        if "=" not in text:
            return text
        raw = text.encode("utf-8", "surrogateescape")
        plain = re.sub(rb"=([0-9A-Fa-f]{2})", lambda m: bytes([int(m.group(1), 16)]), raw)
        return plain.decode("utf-8", "surrogateescape").replace("\0", "")

    def format(self, value: str) -> str:
        """Return the stored form."""
        return re.sub(r"[^A-Za-z0-9_.\-\x80-\U0010ffff]", lambda m: f"={ord(m.group()):02X}", value)


class Name:
    """The name of an environment."""

    def parse(self, text: str) -> str:
        """Return the name; BadValue tells what a name may hold."""
        return check_name(text)

    def format(self, value: str) -> str:
        """Return the name."""
        return value


class Uuid:
    """A UUID, with or without braces; stored without."""

    def parse(self, text: str) -> str:
        """Return it in lower case without braces."""
        uuid = canonical_uuid(text.strip())
        if uuid is None:
            raise BadValue(f"'{text}' is not a UUID")
        return uuid

    def format(self, value: str) -> str:
        """Return it without braces."""
        return value


class Hostname:
    """A host name of letters, digits, dashes and dots, at most 64 bytes (the kernel's limit)."""

    def parse(self, text: str) -> str:
        """Return the name without a trailing dot."""
        name = text.strip().removesuffix(".")
        # The kernel's limit is 64: __NEW_UTS_LEN in include/uapi/linux/utsname.h.
        if len(name) > 64 or not all(_HOSTNAME_LABEL.fullmatch(x) for x in name.split(".")):
            raise BadValue(
                f"'{text[:80]}' is not a host name",
                hint="Use letters, digits, dashes and dots; at most 64 characters.",
            )
        return name

    def format(self, value: str) -> str:
        """Return the name."""
        return value


class CpuList(NamedTuple):
    """``n,n-m`` of CPUs or nodes, ``all`` (stored as nothing), and ``auto`` where allowed.

    The value is the text that cpuset.cpus takes: sorted, ranges joined; "" stands for all.
    """

    auto: bool = False

    def parse(self, text: str) -> str:
        """Return the canonical list, "" for all, or "auto"."""
        word = text.strip().lower()
        if word in {"", "all"}:
            return ""
        if word == "auto" and self.auto:
            return "auto"
        numbers: set[int] = set()
        for part in word.replace(" ", ",").split(","):
            if not part:
                continue
            match = _CPU_RANGE.fullmatch(part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last or last >= MAX_CPUS:
                words = "'all' or 'auto'" if self.auto else "or 'all'"
                raise BadValue(f"'{text}' is not a list like 0-3,5, {words}")
            numbers.update(range(first, last + 1))
        return join_ranges(numbers)

    def format(self, value: str) -> str:
        """Return the list."""
        return value


def join_ranges(numbers: set[int]) -> str:
    """Return NUMBERS as ``0-3,5``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


class Guarantee:
    """MEMGUARANTEE: ``auto`` or a percentage of the memory; auto is None."""

    def parse(self, text: str) -> int | None:
        """Return the percentage, or None for auto."""
        word = text.strip().lower().removesuffix("%")
        return None if word == "auto" else Integer(0, 100).parse(word)

    def format(self, value: int | None) -> str:
        """Return the word or the number."""
        return "auto" if value is None else str(value)


class Environment:
    """VE_ENVIRONMENT: ``A=B C=D``; words with blanks are quoted for the shell."""

    def parse(self, text: str) -> tuple[tuple[str, str], ...]:
        """Return the assignments in order."""
        import shlex  # noqa: PLC0415  (rare, and not needed to list)

        try:
            words = shlex.split(text)
        except ValueError as error:
            raise BadValue(f"'{text}' is not a list of assignments: {error}") from error
        return tuple(_assignment(word) for word in words)

    def format(self, value: tuple[tuple[str, str], ...]) -> str:
        """Return the assignments, quoted where needed."""
        import shlex  # noqa: PLC0415

        return " ".join(f"{name}={shlex.quote(text) if text else ''}" for name, text in value)


def _assignment(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise BadValue(f"'{word}' is not an assignment like NAME=value")
    return name, value
