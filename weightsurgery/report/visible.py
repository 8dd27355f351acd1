"""Text of others made safe for a terminal: what would steer it is shown as an escape instead.

Names of tensors, files, architectures and branches, and what servers and templates say, come from
strangers. Control characters move the cursor, set the clipboard or hide a line; format characters
turn the reading direction or are not seen at all.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["visible", "visible_json"]

# Control (C0, DEL, C1), format (bidi, joiners, tags), halves of characters, separators of lines.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_PLAIN = re.compile(r"[ -~\n]*")


def visible(text: str, lines: bool = False) -> str:
    """A text in which no character steers a terminal or goes unseen.

    Args:
        text: Anything.
        lines: Whether it may have several lines; else a newline is an escape as well.

    Returns:
        The text with such characters as Python's escapes of them.
    """
    if _PLAIN.fullmatch(text) and (lines or "\n" not in text):
        return text
    allowed = "\n" if lines else ""
    return "".join(
        letter
        if letter in allowed or unicodedata.category(letter) not in _UNSEEN
        else _escape(letter)
        for letter in text
    )


def _escape(letter: str) -> str:
    number = ord(letter)
    if letter in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[letter]
    return (
        f"\\x{number:02x}"
        if number < 0x100
        else f"\\u{number:04x}"
        if number < 0x10000
        else f"\\U{number:08x}"
    )


def visible_json(text: str) -> str:
    """The same for a JSON document, by JSON's own escapes: it means what it meant."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(
        letter
        if letter == "\n" or unicodedata.category(letter) not in _UNSEEN
        else "".join(f"\\u{unit:04x}" for unit in _units(letter))
        for letter in text
    )


def _units(letter: str) -> list[int]:
    raw = letter.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2)]
