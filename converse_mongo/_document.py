"""What both Beanie documents have in common: a store to write through, and saves that are safe."""

import copy
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Self, TypeVar

from beanie import Document
from beanie.odm.utils.dump import get_dict
from pydantic import AfterValidator, BaseModel, PrivateAttr, ValidationError

from converse_mongo._driver import collection_of
from converse_mongo._validation import check_metadata
from converse_mongo.chunks import aware
from converse_mongo.errors import InvalidInputError, ProtectedFieldError
from converse_mongo.store import Store

__all__ = ["StoredDocument", "UtcDatetime", "make"]

D = TypeVar("D", bound=Document)

UtcDatetime = Annotated[datetime, AfterValidator(aware)]


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

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._remember()

    def _remember(self) -> None:
        self._remembered = {
            name: value if isinstance(value, str) else copy.deepcopy(value)
            for name, value in self.__dict__.items()
            if name not in self._untracked
        }

    def _changes(self) -> tuple[dict[str, Any], list[str]]:
        """The paths to set, with their values as BSON has them, and the paths to remove.

        Raises:
            ProtectedFieldError: A field that only the library writes was changed.
            InvalidMetadataError: A mapping now holds what BSON cannot.
        """
        fields = type(self).model_fields
        changed = [
            name
            for name, before in self._remembered.items()
            if name in fields and getattr(self, name) != before
        ]
        for name in changed:
            if name in self._protected:
                raise ProtectedFieldError(
                    f"{type(self).__name__}.{name} cannot be saved by hand: "
                    f"{self._protected[name]}. Nothing was written."
                )
        if not changed:
            return {}, []
        encoded = get_dict(self, to_db=True, exclude=set(self._untracked))  # type: ignore[arg-type]
        assign: dict[str, Any] = {}
        remove: list[str] = []
        for name in changed:
            path = fields[name].alias or name
            if name not in self._mappings:
                assign[path] = encoded[path]
                continue
            before = self._remembered[name]
            after = check_metadata(encoded[path], name)
            assign |= {
                f"{path}.{key}": value
                for key, value in after.items()
                if key not in before or before[key] != value
            }
            remove += [f"{path}.{key}" for key in before if key not in after]
        return assign, remove


_direct_stores: dict[type, tuple[Any, Store]] = {}


class StoredDocument(TracksChanges):
    """What both documents have in common: a store to write through, and saves that are safe."""

    bound_store: ClassVar[Store | None] = None
    """Set on the classes that a ``Converse`` makes for itself."""

    @classmethod
    def store(cls) -> Store:
        """The store of the facade that made this class, else one on what ``init_beanie`` bound."""
        if cls.bound_store is not None:
            return cls.bound_store
        message, conversation = cls._models()
        settings = message.get_settings()
        known = _direct_stores.get(cls)
        if known is None or known[0] is not settings:  # bound to another database since
            known = settings, Store(collection_of(message), collection_of(conversation))
            _direct_stores[cls] = known
        return known[1]

    @classmethod
    def _models(cls) -> tuple[type[Document], type[Document]]:
        raise NotImplementedError

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
