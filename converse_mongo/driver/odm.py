"""Beanie: binding and releasing document classes, and its writes of single documents."""

import copy
import types
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias, TypeVar

from beanie import Document
from beanie.odm.actions import ActionRegistry
from beanie.odm.fields import IndexModelField
from beanie.odm.queries.delete import DeleteOne
from beanie.odm.queries.find import FindOne
from beanie.odm.queries.update import UpdateOne
from beanie.odm.utils.init import Initializer
from beanie.odm.utils.typing import get_index_attributes
from pymongo import IndexModel

from converse_mongo.driver.clients import Database

D = TypeVar("D", bound=Document)


# Documents


def bound_subclass(model: type[D], **attributes: Any) -> type[D]:
    """Makes a subclass of ``model`` that can be bound to a database of its own.

    Beanie binds a class to one database for the whole process, and replaces its class attributes by
    query expressions; pydantic then uses those as the defaults of every field that a subclass
    inherits. The fields of ``model`` itself are untouched, so they are restored from it.
    """
    namespace = {
        "__module__": model.__module__,
        "__qualname__": model.__qualname__,
        "__doc__": model.__doc__,
        **attributes,
    }
    metaclass: Any = type(model)
    bound: type[D] = metaclass(model.__name__, (model,), namespace)
    for name, field in model.model_fields.items():
        bound.model_fields[name] = copy.copy(field)
    bound.model_rebuild(force=True)
    return bound


async def bind_documents(database: Database, models: Sequence[type[Document]]) -> None:
    """Binds ``models`` to ``database``, and only them; builds no indexes.

    ``init_beanie`` would also bind their parents, and so move a class that the application has
    bound to another database. So the parents are marked as bound.
    """
    initializer = Initializer(database=database, document_models=list(models), skip_indexes=True)
    for model in models:
        initializer.inited_classes.extend(
            parent for parent in model.__mro__[1:] if issubclass(parent, Document)
        )
    await initializer


def indexes_of(model: type[Document]) -> list[IndexModel]:
    """Returns the indexes that Beanie would build for a bound class."""
    fields = [
        IndexModelField(IndexModel([(field.alias or name, attributes[0])], **attributes[1]))
        for name, field in model.model_fields.items()
        if (attributes := get_index_attributes(field)) is not None
    ]
    of_settings = model.get_settings().indexes or []
    merged = IndexModelField.merge_indexes(fields, of_settings)
    indexes: list[IndexModel] = IndexModelField.list_to_index_model(merged)
    return indexes


def release_documents(models: Sequence[type[Document]]) -> None:
    """Releases classes of :func:`bound_subclass`, which Beanie's registry would keep."""
    for model in models:
        ActionRegistry.clean_actions(model)


# Writes of single documents

Send: TypeAlias = Callable[[Callable[[], Awaitable[Any]], Mapping[str, Any]], Awaitable[Any]]
"""Called with a function that makes a write, and its update operators; a delete has none."""


class _Route(NamedTuple):
    key: Mapping[str, Any]
    send: Send


_route: ContextVar[_Route | None] = ContextVar("converse_mongo_route", default=None)


@contextmanager
def routed(key: Mapping[str, Any], send: Send) -> Iterator[None]:
    """Makes Beanie's methods of a document find it by ``key``, and write it through ``send``.

    ``Document.update`` and ``delete`` find a document by its id alone and call the driver
    themselves, between their hooks and revisions. The class of the document needs
    :class:`RoutedFindOne`.
    """
    token = _route.set(_Route(key, send))
    try:
        yield
    finally:
        _route.reset(token)


class _RoutedUpdate(UpdateOne):
    async def _update(self) -> Any:
        return await _send(self, super()._update, self.update_query)


class _RoutedDelete(DeleteOne):
    def __await__(self) -> Generator[Any, None, Any]:
        return _send(self, self._delete, {}).__await__()

    @types.coroutine
    def _delete(self) -> Generator[Any, None, Any]:
        return (yield from super().__await__())


class RoutedFindOne(FindOne[Any]):
    """A query for one document whose writes follow the current route, if there is one."""

    UpdateQueryType = _RoutedUpdate
    DeleteQueryType = _RoutedDelete


async def _send(
    query: _RoutedUpdate | _RoutedDelete,
    run: Callable[[], Awaitable[Any]],
    update: Mapping[str, Any],
) -> Any:
    route = _route.get()
    if route is None or query.find_query.get("_id") != route.key["_id"]:
        return await run()
    query.find_query = {**query.find_query, **route.key}
    if query.bulk_writer is not None:  # it is only queued now
        return await run()
    return await route.send(run, update)
