"""The command-line parser of all our tools: rows in, values out.

An option is one row `(names, metavar, help)`, for example `("-o,--output", "FIELD,...", "...")`:
names are separated by commas, the first long one is the key under which the value is found; an
empty metavar makes it a flag; a metavar that begins with "+" may be given more than once.  The man
pages and the usage texts are printed from the same rows.  (argparse is not used: importing it costs
more than the rest of a `prlctl list`.)
"""

from __future__ import annotations

from pyvz.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    OptionRow = tuple[str, str, str]


class Arguments:
    """What a command line said: options in their order, and the other words."""

    def __init__(self) -> None:
        self.options: list[tuple[str, str | None]] = []
        self.words: list[str] = []

    def has(self, key: str) -> bool:
        """Whether the option was given."""
        return any(name == key for name, _ in self.options)

    def value(self, key: str, default: str | None = None) -> str | None:
        """Return the last value given for the option, or `default`."""
        found = default
        for name, value in self.options:
            if name == key:
                found = value
        return found

    def values(self, key: str) -> list[str]:
        """Return every value given for the option, in order."""
        return [value for name, value in self.options if name == key and value is not None]

    def number(self, key: str, default: int) -> int:
        """Return the option as a number from 0 on; raise UsageError for anything else."""
        text = self.value(key)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit()):
            raise UsageError(f"An incorrect value '{text}' for --{key} is specified")
        return int(text)

    def word(self, what: str) -> str:
        """Return the only word; raise UsageError when it is missing or others follow."""
        if not self.words:
            raise UsageError(f"{what} is not specified")
        self.no_more_words(1)
        return self.words[0]

    def no_more_words(self, count: int = 0) -> None:
        """Raise UsageError when there are more than `count` words."""
        if len(self.words) > count:
            raise UsageError(f"Unrecognized argument: {self.words[count]}")


def option_names(row: OptionRow) -> list[str]:
    """Return the names of a row, as they are typed."""
    return row[0].split(",")


def key_of(row: OptionRow) -> str:
    """Return the key of a row: its first long name without the dashes."""
    names = option_names(row)
    for name in names:
        if name.startswith("--"):
            return name[2:]
    return names[0].lstrip("-")


def parse(
    rows: Sequence[OptionRow],
    argv: Sequence[str],
    *,
    words_end_options: bool = False,
    abbreviations: bool = False,
) -> Arguments:
    """Parse ARGV by the option rows; an earlier row wins over a later one of the same name.

    words_end_options: everything from the first word on is a word (exec).
    abbreviations: long names may be cut short while they stay unambiguous (getopt_long tools).
    Raises UsageError for an unknown option and a missing or superfluous value.
    """
    table: dict[str, OptionRow] = {}
    for row in rows:
        for name in option_names(row):
            table.setdefault(_spelled(name), row)
    result = Arguments()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            result.words += rest
            break
        if word.startswith("--"):
            _long(table, word, rest, result, abbreviations=abbreviations)
        elif word.startswith("-") and word != "-":
            _short(table, word, rest, result)
        else:
            result.words.append(word)
            if words_end_options:
                result.words += rest
                break
    return result


def _spelled(name: str) -> str:
    """Return a name in the one spelling that the table has: the originals take - and _ alike."""
    return name.replace("_", "-")


def _long(
    table: dict[str, OptionRow],
    word: str,
    rest: list[str],
    result: Arguments,
    *,
    abbreviations: bool,
) -> None:
    name, equals, value = word.partition("=")
    row = table.get(_spelled(name))
    if row is None and abbreviations:
        row = _abbreviated(table, _spelled(name))
    if row is None:
        raise UsageError(f"Unrecognized option: {name}")
    if not row[1]:
        if equals:
            raise UsageError(f"The option {name} does not take a value")
        result.options.append((key_of(row), None))
        return
    if not equals:
        if not rest:
            raise UsageError(f"The option {name} requires a value")
        value = rest.pop(0)
    result.options.append((key_of(row), value))


def _abbreviated(table: dict[str, OptionRow], name: str) -> OptionRow | None:
    rows = {row for known, row in table.items() if known.startswith(name)}
    if len(rows) > 1:
        raise UsageError(f"The option {name} is ambiguous")
    return rows.pop() if rows else None


def _short(table: dict[str, OptionRow], word: str, rest: list[str], result: Arguments) -> None:
    letters = word[1:]
    while letters:
        name, letters = "-" + letters[0], letters[1:]
        row = table.get(name)
        if row is None:
            raise UsageError(f"Unrecognized option: {name}")
        if not row[1]:
            result.options.append((key_of(row), None))
            continue
        if not letters and not rest:
            raise UsageError(f"The option {name} requires a value")
        result.options.append((key_of(row), letters or rest.pop(0)))
        return


def on_off(text: str, option: str) -> bool:
    """Return TEXT (on, yes, off, no) as a bool; raise UsageError for anything else."""
    if text in {"on", "yes"}:
        return True
    if text in {"off", "no"}:
        return False
    raise UsageError(f"An incorrect value '{text}' for {option} is specified: use yes or no")
