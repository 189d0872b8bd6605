"""What each model of processor has, and what this node can give: read from QEMU, once per program.

    query-cpu-model-expansion type=static: each property of a model, of which we want the features

"max" (emulation) or "host" (KVM) is the node.
Source: QEMU, qapi/machine-target.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvz.errors import CommandFailed, Unsupported
from pyvz.linux.run import ENVIRONMENT, run
from pyvz.vm import cpumodel
from pyvz.vm.commandline import PROGRAM

_NODES: Final = {"kvm": "host", "tcg": "max"}
_IGNORED: Final = frozenset({"hypervisor"})  # every guest's processor has it, and no node's
_ALIASES: Final = {"pclmuldq": "pclmulqdq"}  # libvirt's word -> QEMU's
_TIMEOUT: Final = 60.0


class Processors(NamedTuple):
    """The features of each model by its name, and those of the best that the node can give.

    features: all that there are.
    """

    models: Mapping[str, frozenset[str]]
    node: frozenset[str]
    features: frozenset[str]


def known(accelerator: str) -> Processors:
    """Return what QEMU knows; raises Unsupported without QEMU, or when it does not say."""
    program = shutil.which(PROGRAM, path=ENVIRONMENT["PATH"])
    if program is None:
        raise Unsupported(f"{PROGRAM} is not installed on this node")
    try:
        return _asked(program, Path(program).stat().st_mtime_ns, accelerator)
    except (CommandFailed, ValueError, KeyError, TypeError) as error:
        raise Unsupported(
            "QEMU on this node does not tell what processors have", details=str(error)
        ) from error


def canonical(name: str) -> str:
    """Return the name of a feature as QEMU has it; libvirt's differ a little."""
    return _ALIASES.get(name, name.replace("_", "-"))


def nearest(models: Mapping[str, frozenset[str]], features: frozenset[str]) -> str | None:
    """Return the model with the most of these features and no other; None when there is none."""
    fitting = [name for name, each in models.items() if each <= features]
    # Names without a version come first: they are what everybody writes.
    return max(fitting, key=lambda name: (len(models[name]), "-v" not in name), default=None)


@lru_cache(maxsize=4)
def _asked(program: str, _changed: int, accelerator: str) -> Processors:
    names = (_NODES[accelerator], *cpumodel.known())
    queries = [{"execute": "qmp_capabilities"}]
    queries += [_query(number, name) for number, name in enumerate(names)]
    queries.append({"execute": "quit"})
    argv = [program, "-nodefaults", "-no-user-config", "-machine", "none", "-accel", accelerator]
    argv += ["-display", "none", "-qmp", "stdio"]
    text = "".join(json.dumps(each) + "\n" for each in queries)
    told = run(argv, input=text, timeout=_TIMEOUT).stdout
    found = dict(_answers(told.splitlines(), names))
    models = {name: found[name] for name in names[1:] if name in found}
    return Processors(models, found[names[0]], cpumodel.features() - _IGNORED)


def _query(number: int, name: str) -> dict[str, Any]:
    arguments = {"type": "static", "model": {"name": name}}
    return {"execute": "query-cpu-model-expansion", "id": number, "arguments": arguments}


def _answers(lines: Iterable[str], names: tuple[str, ...]) -> Iterable[tuple[str, frozenset[str]]]:
    features = cpumodel.features() - _IGNORED
    for line in lines:
        answer = json.loads(line)
        if "id" in answer and "return" in answer:
            has = answer["return"]["model"]["props"]
            yield names[answer["id"]], frozenset(each for each in features if has.get(each) is True)
