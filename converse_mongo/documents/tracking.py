"""What both Beanie documents have in common: a store to write through, and saves that are safe."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self, TypeVar

import bson
from beanie import Document
from beanie.odm.utils.dump import get_dict
from bson import ObjectId
from bson.errors import BSONError
from pydantic import (
    AfterValidator,
    BaseModel,
    PlainSerializer,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pymongo import IndexModel

from converse_mongo.domain.chunks import aware
from converse_mongo.domain.errors import (
    ConfigurationError,
    InvalidInputError,
    ProtectedFieldError,
)
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.metadata import (
    check_metadata,
    is_addressable,
    restored,
    storable,
)
from converse_mongo.domain.validation import MAX_CONTENT_BYTES
from converse_mongo.driver.collections import collection_of
from converse_mongo.store import Store, store_now

__all__ = ["JsonableDict", "StoredDocument", "UtcDatetime", "make"]

D = TypeVar("D", bound=Document)

UtcDatetime = Annotated[datetime, AfterValidator(aware)]
JsonableDict = Annotated[dict[str, Any], PlainSerializer(jsonable, when_used="json")]
"""A mapping of what BSON holds, which is more than what JSON holds."""

RESERVED = frozenset(
    {
        "chunk_lengths",
        "compact_at",
        "compacted",
        "end_id",
        "last_save",
        "recent_appends",
        "save_mark",
        "stop_requested_at",
        "taken_over_by",
    }
)
"""What the library keeps in documents beside the fields of its classes."""


_IMMUTABLE = (str, int, float, datetime, ObjectId, type(None))  # enumerations of str are str
"""What need not be copied, of the types that most fields have; copying it takes long."""


@dataclass(slots=True)
class Changes:
    """What a save writes.

    Attributes:
        assign: The paths to set, with their values as BSON has them.
        remove: The paths to remove.
        unaddressable: What no path can name, by field: keys with dots or a leading dollar to set,
            with their values, and such keys to remove.
    """

    assign: dict[str, Any] = field(default_factory=dict)
    remove: list[str] = field(default_factory=list)
    unaddressable: dict[str, tuple[dict[str, Any], list[str]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.assign or self.remove or self.unaddressable)

    def add_mapping(self, path: str, assign: Mapping[str, Any], remove: Sequence[str]) -> None:
        """Adds changes of single keys of the mapping at ``path``."""
        apart: tuple[dict[str, Any], list[str]] = ({}, [])
        for key, value in assign.items():
            if is_addressable(key):
                self.assign[f"{path}.{key}"] = value
            else:
                apart[0][key] = value
        for key in remove:
            if is_addressable(key):
                self.remove.append(f"{path}.{key}")
            else:
                apart[1].append(key)
        if any(apart):
            self.unaddressable[path] = apart


class TracksChanges(BaseModel):
    """Remembers the fields as they were loaded, so that a save writes only what differs.

    Beanie's own ``save()`` writes every field as this process last saw it, and so undoes whatever
    was stored by others since. (Its state management would do, but encodes every chunk of every
    message on every load.)
    """

    _protected: ClassVar[Mapping[str, str]] = {}
    """Fields that only the library writes, with what to call instead."""
    _untracked: ClassVar[frozenset[str]] = frozenset({"revision_id"})
    """Fields that a save leaves alone."""
    _mappings: ClassVar[frozenset[str]] = frozenset({"metadata"})
    """Fields whose keys are saved one by one."""

    _remembered: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __init__(self, *args: Any, **data: Any) -> None:
        super().__init__(*args, **data)
        self._remember()

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._remembered = dict(self._remembered)  # noqa: SLF001
        return copied

    def _private(self) -> dict[str, Any]:
        """The private attributes, which take long to get one by one."""
        return self.__pydantic_private__ or {}

    def _fields(self) -> dict[str, Any]:
        """All that a document holds, with the extra fields that a subclass may allow."""
        untracked = self._untracked
        return {
            name: value
            for name, value in (self.__dict__ | (self.__pydantic_extra__ or {})).items()
            if name not in untracked and name not in RESERVED
        }

    def _remember(self) -> None:
        self._remembered = {
            name: value if isinstance(value, _IMMUTABLE) else copy.deepcopy(value)
            for name, value in self._fields().items()
        }

    def _changes(self) -> Changes:
        """What to set and what to remove.

        Raises:
            ProtectedFieldError: A field that only the library writes was changed.
            InvalidInputError: A field now holds what it must not, or BSON cannot.
        """
        missing = object()
        changed = [
            name
            for name, value in self._fields().items()
            if self._remembered.get(name, missing) != value
        ]
        for name in changed:
            self._refuse_protected(name)
            self._validate(name)
        changes = Changes()
        if not changed:
            return changes
        for name in self._mappings.intersection(changed):
            self.__dict__[name] = check_metadata(self.__dict__[name], name)
        encoded = self._check_encoding()
        for name in changed:
            path = self._path(name)
            if name not in self._mappings:
                changes.assign[path] = encoded[path]
                continue
            before, after = self._remembered[name], self.__dict__[name]
            changes.add_mapping(
                path,
                {
                    key: storable(value)
                    for key, value in after.items()
                    if key not in before or before[key] != value
                },
                [key for key in before if key not in after],
            )
        return changes

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
        """Gives a field that was assigned to the checks of one that is loaded."""
        if name not in type(self).model_fields:
            return
        try:
            self.__dict__[name] = _adapter(type(self), name).validate_python(getattr(self, name))
        except ValidationError as error:
            raise InvalidInputError(
                f"{type(self).__name__}.{name} cannot be saved: {error}. Nothing was written."
            ) from error

    def _check_encoding(self) -> dict[str, Any]:
        """The document as BSON holds it, without its chunks.

        Raises:
            InvalidInputError: BSON cannot hold a field, or it is too large.
        """
        name = type(self).__name__
        try:
            encoded: dict[str, Any] = get_dict(
                self,  # type: ignore[arg-type]
                to_db=True,
                exclude=set(self._untracked),
            )
            size = len(bson.encode(encoded))
        except (BSONError, OverflowError, UnicodeError, ValueError, TypeError) as error:
            raise InvalidInputError(
                f"This {name} cannot be stored in BSON: {error}. Nothing was written."
            ) from error
        if size > MAX_CONTENT_BYTES * 3 // 2:
            raise InvalidInputError(
                f"This {name} takes {size} bytes, more than a document can hold beside its chunks: "
                "shorten it. Nothing was written."
            )
        return encoded


@lru_cache(maxsize=256)
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    declared = model.model_fields[name]
    annotation: Any = declared.annotation
    for item in declared.metadata:
        annotation = Annotated[annotation, item]
    return TypeAdapter(annotation)


_direct_stores: dict[type, tuple[Any, Store]] = {}


class StoredDocument(TracksChanges):
    """What both documents have in common: a store to write through, and saves that are safe."""

    bound_store: ClassVar[Store | None] = None
    """Set on the classes that a ``Converse`` makes for itself."""
    _library_settings: ClassVar[Any] = None
    """The ``Settings`` of the library's own class."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "_id" in data:  # as MongoDB has it
            for name in cls._mappings & data.keys():
                mapping = restored(data[name])
                if mapping is not data[name]:
                    data = {**data, name: mapping}
        return cls._derive(data)

    @classmethod
    def _derive(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Adds what a document does not hold yet."""
        return data

    @classmethod
    def store(cls) -> Store:
        """The store of the facade that made this class, else one on what ``init_beanie`` bound."""
        if cls.bound_store is not None:
            return store_now(cls.bound_store)
        message, conversation = cls._models()
        settings = message.get_settings()
        known = _direct_stores.get(cls)
        if known is None or known[0] is not settings:  # bound to another database since
            known = settings, Store(collection_of(message), collection_of(conversation))
            _direct_stores[cls] = known
        return store_now(known[1])

    @classmethod
    def _models(cls) -> tuple[type[Document], type[Document]]:
        raise NotImplementedError

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Checks a subclass, and gives its ``Settings`` what the library needs in them.

        Raises:
            ConfigurationError: A field has a name that the library uses itself.
        """
        super().__pydantic_init_subclass__(**kwargs)
        names = {each for name in cls.model_fields for each in (name, cls._path(name))}
        if taken := names & RESERVED:
            raise ConfigurationError(
                f"{cls.__name__} cannot have the field {', '.join(sorted(taken))}, since "
                "converse_mongo keeps something of its own there: choose another name."
            )
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

    @classmethod
    async def insert_many(cls, *_args: Any, **_kwargs: Any) -> Any:
        """Not offered: it would go past all that :meth:`insert` checks and counts.

        Raises:
            ProtectedFieldError: Always.
        """
        raise ProtectedFieldError(
            f"{cls.__name__}.insert_many() would go past the checks and the order of "
            "converse_mongo: insert one by one. Nothing was written."
        )

    async def update(self, *args: Any, **kwargs: Any) -> Self:
        """Applies update operators, as Beanie does, to fields that are not the library's.

        Beanie's ``set``, ``inc`` and ``current_date`` come here, too.

        Raises:
            ProtectedFieldError: One of the fields is written by the library only.
        """
        for path in _updated_paths(args):
            root = path.partition(".")[0]
            if root in RESERVED:
                raise ProtectedFieldError(
                    f"{root} is written by converse_mongo only. Nothing was written."
                )
            for name in type(self).model_fields:
                if self._path(name) == root:
                    self._refuse_protected(name)
        await super().update(*args, **self._in_session(kwargs))  # type: ignore[misc]
        self._remember()
        return self

    async def delete(self, *args: Any, **kwargs: Any) -> Any:
        """Deletes the document, as Beanie does."""
        return await super().delete(*args, **self._in_session(kwargs))  # type: ignore[misc]

    def _in_session(self, options: dict[str, Any]) -> dict[str, Any]:
        """``options`` of a call of Beanie's, with the session of a transaction."""
        session = self.store().session
        if session is None or options.get("session") is not None:
            return options
        return {**options, "session": session}

    async def sync(self, *_args: Any, **_kwargs: Any) -> None:
        """The same as :meth:`refresh`."""
        await self.refresh()

    async def refresh(self) -> Self:
        """Loads the document again into this object."""
        raise NotImplementedError

    def _load(self, stored: dict[str, Any]) -> None:
        loaded = type(self).model_validate(stored)
        self.__dict__.update(loaded.__dict__)
        if self.__pydantic_extra__ is not None:
            self.__pydantic_extra__.update(loaded.__pydantic_extra__ or {})
        self._remember()

    async def replace(self, *_args: Any, **_kwargs: Any) -> Any:
        """Not offered: it would overwrite what others stored since this copy was loaded.

        Raises:
            ProtectedFieldError: Always.
        """
        raise ProtectedFieldError(
            f"{type(self).__name__}.replace() would erase what others stored since this copy was "
            "loaded: use save(), which writes only what you changed. Nothing was written."
        )

    async def save_changes(self, *args: Any, **kwargs: Any) -> Self:
        """The same as :meth:`save`, which writes only what changed."""
        return await self.save(*args, **kwargs)

    async def save(self, *_args: Any, **_kwargs: Any) -> Self:
        """Saves what was changed on this copy."""
        raise NotImplementedError


def _updated_paths(updates: tuple[Any, ...]) -> Iterator[str]:
    for update in updates:
        query = getattr(update, "query", update)
        if not isinstance(query, Mapping):
            raise ProtectedFieldError(
                "An update by a pipeline could write fields that only converse_mongo writes: use "
                "update operators. Nothing was written."
            )
        for fields in query.values():
            if isinstance(fields, Mapping):
                yield from (str(path) for path in fields)


def make(model: type[D], base: type[Document], own: dict[str, Any], fields: dict[str, Any]) -> D:
    """A new document of ``model``, which may add ``fields`` to those of ``base``."""
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
