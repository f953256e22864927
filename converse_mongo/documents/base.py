"""The base of both documents: it makes the writes of Beanie safe."""

import copy
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar, cast

import bson
from beanie import Document, PydanticObjectId
from beanie.odm.utils.dump import get_dict
from bson import ObjectId
from bson.errors import BSONError
from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pymongo import IndexModel

from converse_mongo.documents.tracking import ChangeTracker
from converse_mongo.documents.views import View
from converse_mongo.domain.errors import (
    ConfigurationError,
    ConversationNotFoundError,
    InvalidInputError,
    MessageNotFoundError,
    ProtectedFieldError,
)
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.metadata import check_metadata, restored
from converse_mongo.domain.validation import MAX_CONTENT_BYTES, now
from converse_mongo.driver.collections import collection_of
from converse_mongo.driver.odm import RoutedFindOne, routed
from converse_mongo.store import Store, store_now
from converse_mongo.store.saves import Changes

D = TypeVar("D", bound=Document)

JsonableDict = Annotated[dict[str, Any], PlainSerializer(jsonable, when_used="json")]
"""A mapping of BSON values, dumped to JSON types."""


@dataclass(frozen=True, slots=True)
class Protected:
    """Marks a field that only the library writes.

    Attributes:
        instead: The reason, or the method to call instead, for the error message.
    """

    instead: str


GIVEN_ONCE = Protected("it never changes")


RESERVED = frozenset(
    {
        "answer_turn",
        "chunk_events",
        "chunk_lengths",
        "chunk_metadata",
        "compact_at",
        "compacted",
        "early_stops",
        "end_id",
        "last_save",
        "queued",
        "recent_appends",
        "save_mark",
        "stop_requested_at",
        "sweeps",
        "taken_over_by",
    }
)
"""The fields of the library in documents that its classes do not have."""


_direct_stores: dict[type, tuple[Any, Store]] = {}

if TYPE_CHECKING:

    class _Base(BaseModel, Document):
        """Both, since mypy does not see that the latter is a subclass of the former."""

else:  # Beanie would bind a document class in between to a collection of its own
    _Base = BaseModel


class StoredDocument(_Base):
    """The base of both documents, which write through a store, and save only changes."""

    if TYPE_CHECKING:  # documents of the library are stored, and so have an id
        id: PydanticObjectId = Field(default=None)  # type: ignore[assignment]
        revision: int
        updated_at: datetime

    bound_store: ClassVar[Store | None] = None
    """The store of the ``Converse`` that made this class."""
    _library_settings: ClassVar[Any] = None
    """The ``Settings`` of the library's own class."""
    _view: ClassVar[type[View]]
    """Its JSON."""
    _library_fields: ClassVar[frozenset[str]] = frozenset()
    """The fields of the library's own class."""
    _kind: ClassVar[str]
    """The document's name in error messages."""
    _missing_error: ClassVar[type[MessageNotFoundError] | type[ConversationNotFoundError]]
    """The error if the document does not exist."""
    _find_one_query_class: ClassVar[type] = RoutedFindOne
    _protected: ClassVar[dict[str, str]] = {"id": "MongoDB ids never change"}
    """The fields that are :class:`Protected`, with their ``instead``."""
    _untracked: ClassVar[frozenset[str]] = frozenset({"revision_id"})
    """Fields that a save ignores."""
    _mappings: ClassVar[frozenset[str]] = frozenset({"metadata"})
    """Fields whose keys are saved one by one."""

    _tracker: ChangeTracker = PrivateAttr(default_factory=ChangeTracker)

    def __init__(self, *args: Any, **data: Any) -> None:
        super().__init__(*args, **data)
        self._remember()

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._tracker = copy.copy(self._tracker)  # noqa: SLF001
        return copied

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "_id" in data:  # as stored
            for name in cls._mappings & data.keys():
                mapping = restored(data[name])
                if mapping is not data[name]:
                    data = {**data, name: mapping}
        return cls._derive(data)

    @classmethod
    def _derive(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Adds values that are derived from others."""
        return data

    @classmethod
    def store(cls) -> Store:
        """Returns the store of the facade that made this class, or of its Beanie binding."""
        if cls.bound_store is not None:
            return store_now(cls.bound_store)
        message: type[Document] = getattr(cls, "message_model", cls)
        conversation: type[Document] = getattr(cls, "conversation_model", cls)
        settings = message.get_settings()
        known = _direct_stores.get(cls)
        if known is None or known[0] is not settings:  # since bound to another database
            known = settings, Store(collection_of(message), collection_of(conversation))
            _direct_stores[cls] = known
        return store_now(known[1])

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Checks a subclass, and completes its ``Settings``.

        Raises:
            ConfigurationError: A field has a name that the library reserves.
        """
        super().__pydantic_init_subclass__(**kwargs)
        if "_view" in cls.__dict__:
            cls._library_fields = frozenset(cls.model_fields)
        names = {each for name in cls.model_fields for each in (name, cls._path(name))}
        if taken := names & RESERVED:
            raise ConfigurationError(
                f"{cls.__name__} cannot have the field {', '.join(sorted(taken))}, which "
                "converse_mongo reserves: choose another name."
            )
        cls._protected = cls._protected | {
            name: mark.instead
            for name, declared in cls.model_fields.items()
            for mark in declared.metadata
            if isinstance(mark, Protected)
        }
        own = cls.__dict__.get("Settings")
        library = cls._library_settings
        if own is not None and library is not None:
            own.name = getattr(own, "name", library.name)
            names = {index.document["name"] for index in library.indexes}
            added = [
                index
                for index in getattr(own, "indexes", [])
                if not (isinstance(index, IndexModel) and index.document["name"] in names)
            ]
            own.indexes = [*library.indexes, *added]
            encoders = getattr(library, "bson_encoders", {})
            own.bson_encoders = {**encoders, **getattr(own, "bson_encoders", {})}

    # JSON

    @classmethod
    def _added_fields(cls) -> list[str]:
        """Returns the names of the fields that the application has added in a subclass."""
        return [name for name in cls.model_fields if name not in cls._library_fields]

    @classmethod
    def _hidden_fields(cls) -> list[str]:
        """Returns the names of the fields that a subclass excludes."""
        return [name for name, declared in cls.model_fields.items() if declared.exclude]

    @model_serializer(mode="wrap", when_used="json")
    def _as_json(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Makes the JSON: the view, and the fields that the application has added."""
        if self.id is None:  # it is not stored yet
            return cast(dict[str, Any], handler(self))
        asked: Any = {"include": info.include, "exclude": info.exclude}
        found = self._view.model_validate(self).model_dump(
            mode="json", exclude_none=info.exclude_none, **asked
        )
        if added := self._added_fields():
            dumped = handler(self)
            for name in added:
                for key in (name, self._path(name)):
                    if key in dumped:
                        found[key] = dumped[key]
        for name in self._hidden_fields():
            found.pop(name, None)
        return found

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describes the JSON."""
        if handler.mode != "serialization":
            return handler(schema)
        view = handler(cls._view.__pydantic_core_schema__)
        added, hidden = cls._added_fields(), cls._hidden_fields()
        if not added and not hidden:
            return view
        found = handler.resolve_ref_schema(view)
        properties = {
            **found["properties"],
            **{cls._path(name): handler(_adapter(cls, name).core_schema) for name in added},
        }
        for name in hidden:
            properties.pop(cls._path(name), None)
        optional = found["properties"].keys() - found.get("required", ())
        return {
            **found,
            "title": cls.__name__,
            "properties": properties,
            "required": [name for name in properties if name not in optional],
        }

    # Changes of this copy

    def _private(self) -> dict[str, Any]:
        """Returns the private attributes, which are slow to get one by one."""
        return self.__pydantic_private__ or {}

    def _fields(self) -> dict[str, Any]:
        """Returns the tracked fields, with the extra fields that a subclass may allow."""
        untracked = self._untracked
        return {
            name: value
            for name, value in (self.__dict__ | (self.__pydantic_extra__ or {})).items()
            if name not in untracked and name not in RESERVED
        }

    def _remember(self) -> None:
        tracker: ChangeTracker = self._private()["_tracker"]
        tracker.remember(self._fields())

    def _changes(self) -> Changes:
        """Checks the changes of this copy, and returns them.

        Raises:
            ProtectedFieldError: A field that only the library writes was changed.
            InvalidInputError: A field has an invalid value, or one that BSON cannot hold.
        """
        changed = self._tracker.changed(self._fields())
        if not changed:
            return Changes()
        for name in changed:
            self._refuse_protected(name)
            self._validate(name)
        for name in self._mappings.intersection(changed):
            self.__dict__[name] = check_metadata(self.__dict__[name], name)
        encoded = self._check_encoding()
        paths = {name: self._path(name) for name in changed}
        return self._tracker.changes(self.__dict__, encoded, paths, self._mappings)

    async def _save(
        self, save: Callable[[dict[str, Any], Changes, datetime], Awaitable[int]]
    ) -> Self:
        if self.id is None:
            return await self.insert()
        changes = self._changes()
        if changes:
            saved_at = now()
            self.revision = await save(self._own_key(), changes, saved_at)
            self.updated_at = saved_at
            self._remember()
        return self

    def _own_id(self) -> ObjectId:
        own_id = self.id
        if own_id is None:
            raise InvalidInputError(f"This {self._kind} is not stored yet: await insert() first.")
        return own_id

    def _own_key(self) -> dict[str, Any]:
        """Returns the filter for this document."""
        return {"_id": self._own_id()}

    @classmethod
    def _path(cls, name: str) -> str:
        declared = cls.model_fields.get(name)
        return (declared.alias if declared else None) or name

    def _refuse_protected(self, name: str) -> None:
        if name in self._protected:
            raise ProtectedFieldError(
                f"{type(self).__name__}.{name} cannot be written by hand: {self._protected[name]}. "
                "Nothing was written."
            )

    def _validate(self, name: str) -> None:
        """Validates an assigned field as if it were loaded."""
        if name not in type(self).model_fields:
            return
        try:
            self.__dict__[name] = _adapter(type(self), name).validate_python(getattr(self, name))
        except ValidationError as error:
            raise InvalidInputError(
                f"{type(self).__name__}.{name} cannot be saved: {error}. Nothing was written."
            ) from error

    def _check_encoding(self) -> dict[str, Any]:
        """Returns the document in BSON, without its chunks.

        Raises:
            InvalidInputError: BSON cannot hold a field, or the document is too large.
        """
        name = type(self).__name__
        try:
            encoded: dict[str, Any] = get_dict(self, to_db=True, exclude=set(self._untracked))
            size = len(bson.encode(encoded))
        except (BSONError, OverflowError, UnicodeError, ValueError, TypeError) as error:
            raise InvalidInputError(
                f"This {name} cannot be stored in BSON: {error}. Nothing was written."
            ) from error
        if size > MAX_CONTENT_BYTES * 3 // 2:
            raise InvalidInputError(
                f"This {name} of {size} bytes is too large for a document, beside its chunks: "
                "shorten it. Nothing was written."
            )
        return encoded

    # Methods of Beanie

    @classmethod
    async def insert_many(cls, *_args: Any, **_kwargs: Any) -> Any:
        """Not supported: it would bypass the checks and the order of :meth:`insert`.

        Raises:
            ProtectedFieldError: Always.
        """
        raise ProtectedFieldError(
            f"{cls.__name__}.insert_many() would bypass the checks and the order of "
            "converse_mongo: insert one by one. Nothing was written."
        )

    async def update(self, *args: Any, **kwargs: Any) -> Self:
        """Applies update operators, as Beanie does, to fields that are not the library's.

        Beanie's ``set``, ``inc`` and ``current_date`` call this method.

        An update without an answer is retried if that is safe, as for ``$set``; ``$inc`` and
        ``$push`` might be applied twice, and are not retried.

        Raises:
            ProtectedFieldError: Only the library writes one of the fields.
            MessageNotFoundError: The message does not exist.
            ConversationNotFoundError: The conversation does not exist.
            StoreUnavailableError: MongoDB did not answer.
            ConverseClosedError: The facade was closed.
        """
        for path in _updated_paths(args):
            root = path.partition(".")[0]
            if root in RESERVED:
                raise ProtectedFieldError(
                    f"Only converse_mongo writes {root}. Nothing was written."
                )
            for name in type(self).model_fields:
                if self._path(name) == root:
                    self._refuse_protected(name)
        with self._through_store(kwargs) as options:
            await super().update(*args, **options)
        self._remember()
        return self

    async def delete(self, *args: Any, **kwargs: Any) -> Any:
        """Deletes the document, as Beanie does.

        Retried like any write of the library; the result may then be that of a second try, which
        found nothing to delete.

        Raises:
            StoreUnavailableError: MongoDB did not answer.
            ConverseClosedError: The facade was closed.
        """
        with self._through_store(kwargs, self._deletable()) as options:
            return await super().delete(*args, **options)

    def _deletable(self) -> dict[str, Any]:
        """Returns the filter of a deletion."""
        return self._own_key()

    @contextmanager
    def _through_store(
        self, options: dict[str, Any], key: Mapping[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Sends the writes of Beanie in the block through the store, by the whole key.

        Args:
            options: The options of Beanie's call.
            key: The filter, if it is another.

        Yields:
            The options of Beanie's call, with the session of a transaction.
        """
        store = self.store()
        store.check_open()
        session = options.get("session") or store.session
        lent = session is not store.session

        async def send(run: Callable[[], Awaitable[Any]], update: Mapping[str, Any]) -> Any:
            what = f"{'update' if update else 'delete'} {self._kind} {self.id}"
            done = await store.saves.apply(run, update, what=what, lent=lent)
            if done is None and not self.get_settings().use_revision:
                raise self._missing_error(self._own_id())
            return done

        with routed(key or self._own_key(), send):
            yield {**options, "session": session} if session else options

    def _load(self, stored: dict[str, Any]) -> None:
        loaded = type(self).model_validate(stored)
        self.__dict__.update(loaded.__dict__)
        if self.__pydantic_extra__ is not None:
            self.__pydantic_extra__.update(loaded.__pydantic_extra__ or {})
        self._remember()

    async def replace(self, *_args: Any, **_kwargs: Any) -> Any:
        """Not supported: it would overwrite what others stored since this copy was loaded.

        Raises:
            ProtectedFieldError: Always.
        """
        raise ProtectedFieldError(
            f"{type(self).__name__}.replace() would erase what others stored since this copy was "
            "loaded: use save(), which writes only what you changed. Nothing was written."
        )

    async def save_changes(self, *args: Any, **kwargs: Any) -> Self:
        """Saves the changed fields; see :meth:`save`."""
        return await self.save(*args, **kwargs)


@lru_cache(maxsize=256)
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    declared = model.model_fields[name]
    annotation: Any = declared.annotation
    for item in declared.metadata:
        annotation = Annotated[annotation, item]
    return TypeAdapter(annotation)


def _updated_paths(updates: tuple[Any, ...]) -> Iterator[str]:
    for update in updates:
        query = getattr(update, "query", update)
        if not isinstance(query, Mapping):
            raise ProtectedFieldError(
                "An update with a pipeline could write fields that only converse_mongo writes: use "
                "update operators. Nothing was written."
            )
        for fields in query.values():
            if isinstance(fields, Mapping):
                yield from (str(path) for path in fields)


def make(model: type[D], base: type[Document], own: dict[str, Any], fields: dict[str, Any]) -> D:
    """Makes a document of ``model``, which may add ``fields`` to those of ``base``."""
    added = model.model_fields.keys() - base.model_fields.keys()
    if unknown := fields.keys() - added:
        raise InvalidInputError(
            f"{model.__name__} has no field {', '.join(sorted(unknown))} to set here: "
            f"use metadata, or add the field in a subclass of {base.__name__}. Nothing was written."
        )
    try:
        return model(**own, **fields)
    except ValidationError as error:
        raise InvalidInputError(
            f"This {model.__name__} cannot be stored: {error}. Nothing was written."
        ) from error
