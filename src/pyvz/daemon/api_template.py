"""The interface io.pyvz.Template: EZ templates, their caches, and packages in containers.

No `from __future__ import annotations` here: see replies.py.
"""

from collections.abc import Callable
from typing import Any, TypedDict

from asyncvarlink import VarlinkInterface, varlinkmethod

from pyvz.daemon.calls import Api, streaming
from pyvz.daemon.tasks import Work
from pyvz.model.task import Progress
from pyvz.operations import template
from pyvz.operations.node import Node
