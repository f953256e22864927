"""Files: what a user's file is as a content block of Anthropic's Messages."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote_to_bytes

from converse_mongo.domain.parts import FilePart
from converse_mongo.integrations.histories import FileUrl
from converse_mongo.integrations.streams import data_of

_IMAGES: Mapping[str, str] = MappingProxyType(
    {each: each for each in ("image/jpeg", "image/png", "image/gif", "image/webp")}
    | {"image/jpg": "image/jpeg"}
)
_PDF = "application/pdf"


def file_block(file: FilePart, provider: str, url_of: FileUrl) -> dict[str, Any] | None:
    """Returns the block of a file, or ``None`` if the API takes no such file."""
    kind = file.media_type.partition(";")[0].strip().lower()
    block: dict[str, Any] = {"type": "image" if kind.startswith("image/") else "document"}
    file_id = data_of(file.provider, provider).get("file_id")
    source = {"type": "file", "file_id": file_id} if file_id else _source(kind, url_of(file))
    if source is None:
        return None
    title = {"title": file.name} if file.name and block["type"] == "document" else {}
    return {**block, "source": source, **title}


def _source(kind: str, url: str | None) -> dict[str, str] | None:
    is_text = kind.startswith("text/")
    if url is None or not (is_text or kind == _PDF or kind in _IMAGES):
        return None
    if not url.startswith("data:"):
        return None if is_text else {"type": "url", "url": url}
    head, _, quoted = url.partition(",")
    data = unquote_to_bytes(quoted)
    is_base64 = head.endswith(";base64")
    if is_text:
        text = (_decoded(data) if is_base64 else data).decode(errors="replace")
        return {"type": "text", "media_type": "text/plain", "data": text} if text.strip() else None
    encoded = (data if is_base64 else b64encode(data)).decode(errors="replace")
    media_type = _IMAGES.get(kind, kind)
    return {"type": "base64", "media_type": media_type, "data": encoded} if encoded else None


def _decoded(data: bytes) -> bytes:
    try:
        return b64decode(data)
    except ValueError:
        return b""
