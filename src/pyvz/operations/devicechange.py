"""Which devices came and went with a change of the configuration, for those who hear of it."""

from __future__ import annotations

from pyvz.model.config import Config


def told(old: Config, new: Config) -> dict[str, str]:
    """Return the data of an event: `added` and `removed`, names of cards and drives."""
    before, after = _names(old), _names(new)
    words = {"added": after - before, "removed": before - after}
    return {word: " ".join(sorted(names)) for word, names in words.items() if names}


def _names(config: Config) -> set[str]:
    cards = {card.ifname for card in config.network.interfaces or ()}
    return cards | {drive.name for drive in config.machine.drives if drive.enabled}
