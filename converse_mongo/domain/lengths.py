"""Merged chunks: the text of a message, and the lengths and the metadata of its chunks.

A watcher resumes behind any sequence, so the places where chunks ended must outlive them. A length
takes a byte or two here, in the variable-length form of
https://protobuf.dev/programming-guides/encoding/#varints, where a chunk takes a hundred. Metadata
are stored once for all chunks in a row that have the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import bson

from converse_mongo.domain.chunks import StoredChunk
from converse_mongo.domain.metadata import restored, storable


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


def encode_metadata(chunks: Iterable[StoredChunk]) -> list[dict[str, Any]]:
    """Returns the metadata of chunks, once for all chunks in a row that have the same.

    Each run has the ``sequence`` of its first chunk, and ``metadata`` unless its chunks have none.
    The list is empty if no chunk has metadata.
    """
    runs: list[dict[str, Any]] = []
    last = b""
    for chunk in chunks:
        stored = chunk.get("metadata")
        metadata = storable(restored(stored)) if stored else None
        # Bytes tell true from 1, and 1 from 1.0.
        encoded = bson.encode(metadata) if metadata else b""
        if encoded != last:
            run = {"sequence": chunk["sequence"]}
            runs.append({**run, "metadata": metadata} if metadata else run)
            last = encoded
    return runs


def expand(
    stored: Mapping[str, Any], start: int = 0, limit: int | None = None
) -> list[StoredChunk]:
    """Returns the chunks of a merged message from sequence ``start`` on, as they were stored.

    Their dates are gone: they get the date of the end.
    """
    text: str = stored["content"]
    ends = list(accumulate(decode_lengths(stored["chunk_lengths"]), initial=0))
    count = len(ends) - 1
    stop = count if limit is None else min(start + limit, count)
    chunks: list[StoredChunk] = [
        {
            "sequence": sequence,
            "content": text[ends[sequence] : ends[sequence + 1]],
            "created_at": stored["completed_at"],
        }
        for sequence in range(start, stop)
    ]
    runs = stored.get("chunk_metadata") or ()
    for run, after in zip(runs, [*(each["sequence"] for each in runs[1:]), count], strict=False):
        if "metadata" in run:
            for chunk in chunks[max(run["sequence"] - start, 0) : max(after - start, 0)]:
                chunk["metadata"] = run["metadata"]
    return chunks
