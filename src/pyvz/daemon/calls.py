"""How a method of the API becomes work: declared as data, run as a task, answered with replies.

A method that changes something is written as a plain function that returns a `Work` value:

    @streaming(Uuid)
    def Clone(self, node: Node, *, ref: str, name: str) -> Work: ...

and the decorator makes the Varlink method of it: it adds the parameters `origin` (who asks, for
the log) and `timeout` (seconds to wait for the environment's lease), runs the work as a task, and
answers with progress and a result (`streaming`, needs `more`), or with one reply (`acting`).
"""

import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict

from asyncvarlink import AnnotatedResult, LastResult, varlinkmethod

from pyvz.daemon.access import Caller
from pyvz.daemon.replies import Progress
from pyvz.daemon.services import Services
from pyvz.daemon.tasks import Task, Work
from pyvz.operations.node import Node

Declared = Callable[..., Work]

_STREAM_DOC = """

Call it with `more`: any number of replies with `progress`, then one with `result`."""
_COMMON = (
    inspect.Parameter("origin", inspect.Parameter.KEYWORD_ONLY, default="", annotation=str),
    inspect.Parameter("timeout", inspect.Parameter.KEYWORD_ONLY, default=0.0, annotation=float),
)


class Api:
    """Base of the interfaces: one instance per connection, made for its caller."""

    def __init__(self, services: Services, caller: Caller) -> None:
        self.services = services
        self.caller = caller

    @property
    def node(self) -> Node:
        """The node, for queries."""
        return self.services.node

    async def query(self, function: Callable[..., Any], *args: object, **more: object) -> Any:  # noqa: ANN401
        """Run a query in a thread: `function(node, *args, **more)`."""
        return await self.services.tasks.query(partial(function, self.node, *args, **more))

    def begin(self, declared: Declared, parameters: dict[str, Any]) -> Task:
        """Start what a declared method asks for, as a task."""
        origin = parameters.pop("origin", "")
        node = replace(self.node, default_timeout=max(0.0, parameters.pop("timeout", 0.0)))
        work = declared(self, node, **parameters)
        return self.services.tasks.start(work._replace(origin=origin), self.caller)


def streaming(last: type) -> Callable[[Declared], Callable[..., AsyncIterator[AnnotatedResult]]]:
    """Make a method that answers with a stream; LAST is the TypedDict of its last reply.

    A client that goes away calls its task off, when the task can be called off.
    """

    class Reply(TypedDict, total=False):
        progress: Progress
        result: last  # type: ignore[valid-type]

    def decorate(declared: Declared) -> Callable[..., AsyncIterator[AnnotatedResult]]:
        async def stream(self: Api, **parameters: object) -> AsyncIterator[Any]:
            task = self.begin(declared, parameters)
            try:
                while updates := await task.updates():
                    for update in updates:
                        yield {"progress": update}
                raise LastResult({"result": task.work.reply(await task.outcome)})
            finally:
                task.cancel()

        _dress(stream, declared, AsyncIterator[Reply], _STREAM_DOC)
        return varlinkmethod(stream, delay_generator=False, allow_foreign=True)

    return decorate


def acting(result: type) -> Callable[[Declared], Callable[..., Any]]:
    """Make a method that answers once, with the TypedDict RESULT."""

    def decorate(declared: Declared) -> Callable[..., Any]:
        async def act(self: Api, **parameters: object) -> Any:  # noqa: ANN401
            task = self.begin(declared, parameters)
            return task.work.reply(await task.outcome)

        _dress(act, declared, result, "")
        return varlinkmethod(act, allow_foreign=True)

    return decorate


def _dress(function: Callable[..., Any], declared: Declared, result: object, doc: str) -> None:
    """Give FUNCTION the name, text and parameters of DECLARED, from which Varlink reads them."""
    function.__name__ = declared.__name__
    function.__qualname__ = declared.__qualname__
    function.__doc__ = inspect.cleandoc(declared.__doc__ or "") + doc
    given = inspect.signature(declared)
    own = [each for each in given.parameters.values() if each.name != "node"]
    function.__signature__ = given.replace(  # type: ignore[attr-defined]
        parameters=[*own, *_COMMON], return_annotation=result
    )
