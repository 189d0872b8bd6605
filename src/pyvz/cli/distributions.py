"""Names of guests for `prlctl create --distribution` and `--ostype` (prlctl.md section 4.4)."""

from __future__ import annotations

from pyvz.errors import UsageError

FAMILIES = {
    "windows": "win-2022", "win": "win-2022", "linux": "linux", "lin": "linux",
    "freebsd": "freebsd", "solaris": "solaris", "other": "other",
}  # fmt: skip
DISTRIBUTIONS = (
    *("win-xp", "win-vista", "win-7", "win-8", "win-8.1", "win-10", "win-11"),
    *("win-2003", "win-2008", "win-2012", "win-2016", "win-2019", "win-2022"),
    *("rhel", "rhel7", "rhel8", "rhel9", "suse", "sles11", "sles12", "debian", "fedora-core"),
    *("ubuntu", "mandriva", "centos", "centos7", "centos8", "vzlinux", "vzlinux7", "vzlinux8"),
    *("cloudlinux7", "cloudlinux8", "almalinux9", "opensuse", "linux", "mageia", "mint"),
    *("freebsd-4", "freebsd-5", "freebsd-6", "freebsd-7", "freebsd-8", "freebsd"),
    *("chrome", "android", "solaris", "macos", "other"),
)
_ALIASES = {"fc": "fedora-core"}


def listing(*, families: bool) -> str:
    """Return what `list` prints."""
    names = tuple(FAMILIES) if families else DISTRIBUTIONS
    what = "operating system types" if families else "distributions"
    return f"The following values are allowed for {what}:\n" + " ".join(names)


def find(text: str, *, family: bool) -> str:
    """Return the distribution that TEXT means; raises UsageError."""
    word = text.lower()
    if family and word in FAMILIES:
        return FAMILIES[word]
    word = _ALIASES.get(word, word)
    if not family and word in DISTRIBUTIONS:
        return word
    option = "ostype" if family else "distribution"
    raise UsageError(
        f"An incorrect value '{text}' for --{option} is specified",
        hint=f"--{option} list prints the values.",
    )
