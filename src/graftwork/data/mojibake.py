"""Texts of UTF-8 that somebody read as Windows' cp1252, and saved as that: `â€™` in the place of `’`.

Tables that went through a spreadsheet have them, some more than once. Some were saved on a Macintosh after that, where
a byte that cp1252 does not have stayed the byte it was, so that it now reads as another letter; and what Mac Roman does
not have became _.
"""

import re
from collections.abc import Iterable

_UNASSIGNED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
"""Bytes that cp1252 does not have."""

_BYTES = {chr(byte) if byte in _UNASSIGNED else bytes([byte]).decode("cp1252"): byte for byte in range(0x80, 0x100)}
_IN_MAC_ROMAN = {bytes([byte]).decode("mac_roman"): byte for byte in _UNASSIGNED}

_LEADS = {character: byte for character, byte in _BYTES.items() if 0xC2 <= byte <= 0xF4}
_PLAIN = {character: byte for character, byte in _BYTES.items() if 0x80 <= byte <= 0xBF}
_FOLLOWERS = _PLAIN | _IN_MAC_ROMAN


def _class(characters: Iterable[str]) -> str:
    return f"[{''.join(map(re.escape, characters))}]"


# A letter that may stand for a byte stands for itself where it begins a sequence of its own.
_ENCODED = re.compile(f"{_class(_LEADS)}(?:{_class(_PLAIN)}|{_class(_IN_MAC_ROMAN)}(?!{_class(_PLAIN)})){{1,3}}")
_ELLIPSIS = re.compile("â€_")
"""The ellipsis, as it is left where its last byte was lost; other characters that lose it are rare in texts."""


def repair(text: str) -> str:
    """The text with what was misread put right, and all else as it is."""
    before = None
    while text != before and not text.isascii():
        before, text = text, _once(text)
    return text


def _once(text: str) -> str:
    return _ELLIPSIS.sub("…", _ENCODED.sub(_decoded, text))


def _decoded(found: re.Match[str]) -> str:
    characters = found.group()
    lead = _LEADS[characters[0]]
    size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    sequence = bytes([lead, *(_FOLLOWERS[character] for character in characters[1:size])])
    try:
        return sequence.decode("utf-8") + _once(characters[size:])
    except UnicodeDecodeError:
        return characters[0] + _once(characters[1:])
