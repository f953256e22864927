"""Merged chunks: the text of a message, and the lengths of its chunks.

A watcher resumes behind any sequence, so the places where chunks ended must outlive them. A length
takes a byte or two here, in the variable-length form of
https://protobuf.dev/programming-guides/encoding/#varints, where a chunk takes a hundred.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, islice
from typing import Any

from converse_mongo.domain.chunks import StoredChunk


def encode_lengths(contents: Iterable[str]) -> bytes:
    """Encodes the number of code points of each of ``contents``."""
    encoded = bytearray()
    for content in contents:
        length = len(content)
        while length > 0x7F:
            encoded.append(length & 0x7F | 0x80)
            length >>= 7
        encoded.append(length)
    return bytes(encoded)


def decode_lengths(encoded: bytes) -> Iterator[int]:
    """Reverses :func:`encode_lengths`."""
    length = shift = 0
    for byte in encoded:
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            yield length
            length = shift = 0


def expand(
    stored: Mapping[str, Any], start: int = 0, limit: int | None = None
) -> list[StoredChunk]:
    """Returns the chunks of a merged message from sequence ``start`` on, as they were stored.

    Their metadata and dates are gone: they get the date of the end.
    """
    text: str = stored["content"]
    ends = list(accumulate(decode_lengths(stored["chunk_lengths"]), initial=0))
    stop = None if limit is None else start + limit
    return [
        {
            "sequence": sequence,
            "content": text[ends[sequence] : ends[sequence + 1]],
            "created_at": stored["completed_at"],
        }
        for sequence in islice(range(len(ends) - 1), start, stop)
    ]
