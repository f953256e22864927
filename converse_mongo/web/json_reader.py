"""Reads a JSON object in slices: keeps some of its members as they were sent, and drops the rest.

What is dropped is checked, too, and never becomes Python objects. Each slice takes time in
proportion to its size, whatever it holds; ``ijson`` begins a long string anew with each slice.
"""

import codecs
import re
from collections.abc import Callable, Collection

from pydantic_core import from_json

from converse_mongo.web.errors import TOO_LONG, RequestError, TooLargeError

MAX_DEPTH = 128
MAX_ATOM = 1024
"""The longest number; a keyword is shorter."""
MAX_KEY = 1024
"""The longest key, as it was sent, of a member that can be kept."""
MAX_VALUES = 20_000
"""The most values among what is kept, which becomes Python objects at once."""
WHOLE_DEPTH = 8
"""The depth up to which containers are matched as a whole; deeper ones would be tried in vain."""

# https://www.rfc-editor.org/rfc/rfc8259. Possessive: nothing is tried twice.
_SPACE = r"[ \t\n\r]*+"
_ESCAPE = r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_TEXT = rf'(?:[^"\\\x00-\x1f]++|{_ESCAPE})*+'
_STRING = rf'"{_TEXT}"'
_NUMBER = r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+"
_SCALAR = rf"(?:{_STRING}|{_NUMBER}|true|false|null)"


def _items(item: str, last: str) -> str:
    """Items with commas between them, up to what is the ``last``."""
    return rf"{_SPACE}(?:{item}{_SPACE}(?:,{_SPACE}(?!{last})|(?={last})))*+{last}"


def _nested(value: str) -> str:
    """A container of such values, or a scalar."""
    member = rf"{_STRING}{_SPACE}:{_SPACE}{value}"
    return rf"(?:{_SCALAR}|\[{_items(value, ']')}|{{{_items(member, '}')})"


def _compiled(pattern: str) -> re.Pattern[bytes]:
    return re.compile(pattern.encode("latin-1"))


# Containers in containers are matched as a whole as far as a slice has them. What remains is read
# token by token, which decides alone what is valid.
_VALUE = _nested(_nested(_nested(_nested(_SCALAR))))
_A_VALUE = _compiled(_VALUE)
_ELEMENTS = _compiled(rf"(?:{_SPACE}{_VALUE}{_SPACE},)*+")
_MEMBERS = _compiled(rf"(?:{_SPACE}{_STRING}{_SPACE}:{_SPACE}{_VALUE}{_SPACE},)*+")
_SPACES, _TEXTS, _A_STRING = _compiled(_SPACE), _compiled(_TEXT), _compiled(_STRING)
_ATOM, _A_SCALAR = _compiled(r"[-+.0-9A-Za-z]*+"), _compiled(_SCALAR)
_PART_OF_ESCAPE = _compiled(r"\\(?:u[0-9a-fA-F]{0,3})?")
_COUNTED = _compiled(rf"{_STRING}|[,\[{{]")

_INVALID = "The body is not valid JSON."
_QUOTE, _COLON, _COMMA = b'":,'
_ARRAY, _ARRAY_END, _OBJECT, _OBJECT_END = b"[]{}"


class ObjectReader:
    """Reads one JSON object.

    Args:
        keep: The keys of the members that are kept.
        limit: The most bytes to keep.
        last_of: The key of an array of which only the last element is kept.
    """

    def __init__(self, keep: Collection[str], limit: int, last_of: str | None = None) -> None:
        self._keep = frozenset(keep)
        self._limit = limit
        self._last_of = last_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._rest = b""
        self._read: Callable[[bytes, int], int] = self._read_value
        """Reads what comes next, and returns where it ends; -1 if the next slice has its end."""
        self._is_first = False
        self._is_key = False
        self._open = bytearray()
        self._members: dict[str, bytes] = {}
        self._key: str | None = None
        self._in_list = False
        self._last = b""
        self._is_large = False
        self._kept: bytearray | None = None
        """What was kept of the value that is being read; ``None`` if it is dropped."""
        self._from = 0
        self.seconds = 0.0
        """The processor time that reading has taken; the caller counts it."""

    @property
    def held(self) -> int:
        """The number of bytes that it holds."""
        kept = sum(map(len, self._members.values())) + len(self._kept or b"")
        return kept + len(self._last) + len(self._rest)

    def get(self, key: str) -> bytes | None:
        """Returns the value of a member as it was sent; ``None`` until it was read."""
        return self._members.get(key)

    def end(self) -> bytes:
        """Returns what was kept, as one JSON object; of an empty body, an empty one.

        Raises:
            RequestError: What was sent is not valid, or ends too early.
            TooLargeError: It has too many values.
        """
        self.feed(b"\n", final=True)
        if self._open or self._rest:
            raise RequestError(detail=_INVALID)
        kept = b",".join(b'"%b":%b' % (key.encode(), raw) for key, raw in self._members.items())
        values = 0
        for found in _COUNTED.finditer(kept):
            values += found[0][0] != _QUOTE
            if values > MAX_VALUES:
                raise TooLargeError(detail=f"The body has more than {MAX_VALUES} values.")
        return b"{%b}" % kept

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Reads a slice.

        Raises:
            RequestError: What was sent is not valid.
            TooLargeError: What is kept is too large.
        """
        try:
            self._utf8.decode(data, final)
        except UnicodeDecodeError as error:
            raise RequestError(detail="The body is not valid UTF-8.") from error
        data = self._rest + data
        at = self._from = 0
        while at < len(data) and (then := self._read(data, at)) >= 0:
            at = then
        self._keep_up_to(data, at)
        self._rest = data[at:]

    # What comes next

    def _read_value(self, data: bytes, at: int) -> int:
        is_first, is_deep = self._is_first, len(self._open) > WHOLE_DEPTH
        in_array = self._open[-1:] == b"["
        if in_array and not is_deep and (then := _end(_ELEMENTS, data, at)) > at:
            self._is_first = False
            return then
        at = _end(_SPACES, data, at)
        if at == len(data):
            return at
        begin = data[at]
        if is_first and begin == _ARRAY_END:
            return self._leave(data, at)
        if not self._open and begin != _OBJECT:
            is_value = begin in b'["-0123456789tfn'
            raise RequestError(detail="body: Input should be an object." if is_value else _INVALID)
        if begin in b'"[{':
            is_list = self._begin(begin, at) if self._open else True
            pattern = _A_STRING if is_deep else _A_VALUE
            if not is_list and (found := pattern.match(data, at)) is not None:
                return self._finish(data, found.end())
            if begin != _QUOTE:
                return self._enter(begin, at)
            self._read, self._is_key = self._read_text, False
            return at + 1
        end = _end(_ATOM, data, at)
        if end == len(data) and end - at <= MAX_ATOM:
            return -1
        if end - at > MAX_ATOM or _A_SCALAR.fullmatch(data, at, end) is None:
            raise RequestError(detail=_INVALID)
        self._begin(begin, at)
        return self._finish(data, end)

    def _read_key(self, data: bytes, at: int) -> int:
        depth, is_first = len(self._open), self._is_first
        is_member = depth == 1
        if 1 < depth <= WHOLE_DEPTH and (then := _end(_MEMBERS, data, at)) > at:
            self._is_first = False
            return then
        at = _end(_SPACES, data, at)
        if at == len(data):
            return at
        if is_first and data[at] == _OBJECT_END:
            return self._leave(data, at)
        if data[at] != _QUOTE:
            raise RequestError(detail=_INVALID)
        found = _A_STRING.match(data, at)
        if found is None:
            if is_member and len(data) - at <= MAX_KEY:
                return -1
            if is_member:
                self._key = None
            self._read, self._is_key = self._read_text, True
            return at + 1
        if is_member:
            self._key = _text(found[0])
            if self._key in self._members:
                raise RequestError(detail=f"{self._key}: It was sent twice.")
        self._read = self._read_colon
        return found.end()

    def _read_colon(self, data: bytes, at: int) -> int:
        at = _end(_SPACES, data, at)
        if at == len(data):
            return at
        if data[at] != _COLON:
            raise RequestError(detail=_INVALID)
        self._read, self._is_first = self._read_value, False
        return at + 1

    def _read_text(self, data: bytes, at: int) -> int:
        end = _end(_TEXTS, data, at)
        if end == len(data):
            return end
        if data[end] == _QUOTE:
            if not self._is_key:
                return self._finish(data, end + 1)
            self._read = self._read_colon
            return end + 1
        if not _PART_OF_ESCAPE.fullmatch(data, end):
            raise RequestError(detail=_INVALID)
        return end if end > at else -1

    def _read_comma(self, data: bytes, at: int) -> int:
        at = _end(_SPACES, data, at)
        if at == len(data):
            return at
        if data[at] != _COMMA:
            return self._leave(data, at)
        if self._in_list and len(self._open) == 2:
            self._last, self._is_large = b"", False  # this was not the last one
        self._is_first = False
        self._read = self._read_value if self._open[-1] == _ARRAY else self._read_key
        return at + 1

    def _read_end(self, data: bytes, at: int) -> int:
        at = _end(_SPACES, data, at)
        if at < len(data):
            raise RequestError(detail=_INVALID)
        return at

    # Values

    def _begin(self, begin: int, at: int) -> bool:
        """Begins to keep a value, if it is kept; returns whether it is the list."""
        depth = len(self._open)
        if depth == 1 and self._key == self._last_of and begin == _ARRAY:
            self._in_list = True
            return True
        if (depth == 1 and self._key in self._keep) or (depth == 2 and self._in_list):
            self._kept, self._from = bytearray(), at
        return False

    def _enter(self, begin: int, at: int) -> int:
        if len(self._open) >= MAX_DEPTH:
            raise RequestError(detail="The body is nested too deeply.")
        self._open.append(begin)
        self._is_first = True
        self._read = self._read_value if begin == _ARRAY else self._read_key
        return at + 1

    def _leave(self, data: bytes, at: int) -> int:
        if data[at] != (_ARRAY_END if self._open[-1] == _ARRAY else _OBJECT_END):
            raise RequestError(detail=_INVALID)
        self._open.pop()
        if self._in_list and len(self._open) == 1:
            self._end_list(at + 1)
        return self._finish(data, at + 1)

    def _end_list(self, at: int) -> None:
        if self._is_large:
            raise TooLargeError(
                TOO_LONG, detail=f"The last message is larger than {self._limit} bytes."
            )
        self._kept, self._from = bytearray(b"[" + self._last + b"]"), at
        self._in_list = False

    def _finish(self, data: bytes, end: int) -> int:
        depth = len(self._open)
        self._read = self._read_comma if depth else self._read_end
        if depth == 1 or (depth == 2 and self._in_list):
            self._keep_up_to(data, end)
            kept, self._kept = bytes(self._kept or b""), None
            if depth == 2:
                self._last = kept
            elif kept and self._key is not None:
                self._members[self._key] = kept
        return end

    def _keep_up_to(self, data: bytes, at: int) -> None:
        """Keeps what was read of this slice, if it belongs to a value that is kept."""
        if self._kept is None:
            return
        self._kept += data[self._from : at]
        self._from = at
        if sum(map(len, self._members.values())) + len(self._kept) > self._limit:
            if not self._in_list:
                raise TooLargeError(detail=f"The body is larger than {self._limit} bytes.")
            self._kept, self._is_large = None, True  # unless it is not the last one


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """The end of what a pattern matches, which may be nothing."""
    found = pattern.match(data, at)
    return at if found is None else found.end()


def _text(raw: bytes) -> str | None:
    """The text of a key; ``None`` if it is not Unicode, and so none that is kept."""
    try:
        found: str = from_json(raw)
    except ValueError:
        return None
    return found
