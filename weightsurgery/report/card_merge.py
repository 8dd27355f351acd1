"""A model card that is ours in part: our section between markers, a user's words left alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weightsurgery.errors import HubError

__all__ = ["BEGIN", "END", "Merged", "merge_card", "split_card"]

BEGIN, END = "<!-- weightsurgery:begin -->", "<!-- weightsurgery:end -->"

# Which keys of the front matter are ours, so that the next push may change them.
_OURS = re.compile(r"<!-- weightsurgery:front-matter (.*?) -->")
_FRONT = re.compile(r"(---[ \t]*(?:\r\n|\n))(.*?(?:\r\n|\n))??(---[ \t]*(?:\r\n|\n|$))", re.S)

# Room for the results of a benchmark of a hundred tasks.
_LARGEST = 1 << 19

# Keys that mean something together: a user's word on the first is a word on all.
_TOGETHER = (("license", "license_name", "license_link"), ("base_model", "base_model_relation"))


@dataclass(frozen=True)
class Merged:
    """A whole card.

    Attributes:
        text: What the file holds.
        notices: What became of a user's own card, a line each.
    """

    text: str
    notices: tuple[str, ...]


@dataclass
class _Parts:
    """A card taken apart: ``mark + front matter + before + ours + after``."""

    mark: str = ""  # a byte order mark
    block: str | None = None  # the front matter's text; None if there is none
    front: dict[str, Any] = field(default_factory=dict)
    before: str = ""
    ours: str | None = None  # None if there are no markers
    after: str = ""

    @property
    def has_words(self) -> bool:
        return bool((self.before + self.after).strip())


def split_card(text: str, where: str) -> tuple[dict[str, Any], str]:
    """A card's front matter, and a user's own words in its body.

    Raises:
        HubError: The front matter is no YAML mapping, or our markers are damaged.
    """
    parts = _take_apart(text, where)
    return parts.front, parts.before + parts.after


def merge_card(
    existing: str | None, where: str, front: Mapping[str, Any], section: Callable[[bool], str]
) -> Merged:
    """Put our part into a card.

    Args:
        existing: The card there is; None or blank for none.
        where: What to call it in messages.
        front: Our front matter.
        section: Our part; its argument is whether the card holds nothing else.

    Returns:
        The card. Text outside our markers is what it was, byte for byte; so are lines of the front
        matter that we have no reason to touch.

    Raises:
        HubError: The front matter is no YAML mapping, or our markers are damaged.
    """
    parts = _take_apart(existing or "", where)
    remembered = _remembered(parts.ours or "")
    final, added = _merged_front(parts.front, remembered, front)
    first = re.search(r"\r?\n", existing or "")
    line = first[0] if first else "\n"
    memory = json.dumps(added, ensure_ascii=True, default=str)
    memory = memory.replace("-", "\\u002d").replace("<", "\\u003c").replace(">", "\\u003e")
    ours = section(not parts.has_words)
    if BEGIN in ours or END in ours or _OURS.search(ours):
        raise ValueError("our part of the card holds a marker")
    ours = f"{BEGIN}\n<!-- weightsurgery:front-matter {memory} -->\n\n{ours}\n\n{END}"
    head = _front_text(parts, final, line)
    gap = ""
    if parts.ours is None:
        gap = "" if re.search(r"(\r?\n){2}$", head + parts.before) else line
        if parts.before and not parts.before.endswith("\n"):
            gap = line * 2
    tail = parts.after if parts.ours is not None else line
    text = parts.mark + head + parts.before + gap + ours.replace("\n", line) + tail
    return Merged(text, tuple(_notices(parts, where, added, front)))


def _take_apart(text: str, where: str) -> _Parts:
    parts = _Parts()
    if text.startswith("\ufeff"):
        parts.mark, text = "\ufeff", text[1:]
    if match := _FRONT.match(text):
        parts.block, text = match[2] or "", text[match.end() :]
        parts.front = _loaded(parts.block, where)
    begins, ends = text.count(BEGIN), text.count(END)
    if begins == ends == 0:
        parts.before = text
        return parts
    start, end = text.find(BEGIN), text.find(END)
    if begins != 1 or ends != 1 or end < start:
        raise HubError(
            f"{where}: the lines {BEGIN} and {END} must stand there once, in this order",
            "Mend them, or delete both with what is between.",
        )
    end += len(END)
    parts.before, parts.ours, parts.after = text[:start], text[start:end], text[end:]
    return parts


def _loaded(block: str, where: str) -> dict[str, Any]:
    import yaml

    if len(block) > _LARGEST:
        raise HubError(
            f"{where}: its front matter has {len(block)} characters",
            f"Keep it to {_LARGEST}: move results into files of their own.",
        )
    try:
        # An alias stands for as much as it likes, itself included, and would be written out.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(block, yaml.SafeLoader)):
            raise HubError(
                f"{where}: its front matter holds aliases (*name)",
                "Write what they stand for in their places.",
            )
        front = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise HubError(
            f"{where}: its front matter is no YAML ({line})", "Mend what is between the --- lines."
        ) from None
    if front is None:
        return {}
    if not isinstance(front, dict) or not all(isinstance(key, str) for key in front):
        raise HubError(
            f"{where}: its front matter is no mapping of names to values",
            "Mend what is between the --- lines.",
        )
    return front


def _remembered(ours: str) -> dict[str, Any]:
    """What we put into the front matter last time."""
    match = _OURS.search(ours)
    if match is None:
        return {}
    try:
        front = json.loads(match[1])
    except ValueError:
        return {}  # then all that is there counts as the user's
    return front if isinstance(front, dict) else {}


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def _merged_front(
    there: Mapping[str, Any], remembered: Mapping[str, Any], ours: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The front matter to be, and what of it is ours."""
    users = {
        key: value
        for key, value in there.items()
        if key == "tags" or key not in remembered or remembered[key] != value
    }
    added = {key: value for key, value in ours.items() if key != "tags" and key not in users}
    for first, *others in _TOGETHER:
        if first in users:
            added = {key: value for key, value in added.items() if key not in others}
    old = _as_list(remembered.get("tags"))
    tags = [tag for tag in _as_list(users.pop("tags", None)) if tag not in old]
    new = [tag for tag in _as_list(ours.get("tags")) if tag not in tags]
    if new:
        added["tags"] = new
    final = {key: users.get(key, added.get(key)) for key in there if key in users or key in added}
    final |= {key: value for key, value in added.items() if key not in final}
    if tags or new:
        final["tags"] = tags + new
    return final, added


def _front_text(parts: _Parts, final: Mapping[str, Any], line: str) -> str:
    """The front matter with its rules, in the user's own lines where they stay true."""
    if parts.block is None:
        gap = "" if parts.before.startswith(("\n", "\r\n")) else line
        return f"---{line}{_dumped(final, line)}---{line}{gap}"
    block = _edited(parts.block, parts.front, final, line)
    try:
        same = _loaded(block, "") == final
    except HubError:
        same = False
    if not same:
        block = _dumped(final, line)
    return f"---{line}{block}---{line}"


def _dumped(values: Mapping[str, Any], line: str) -> str:
    import yaml

    if not values:
        return ""
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return text.replace("\n", line)


def _edited(block: str, there: Mapping[str, Any], final: Mapping[str, Any], line: str) -> str:
    """A block of YAML in which only the lines of keys that change are other ones."""
    import yaml

    node = yaml.compose(block, Loader=yaml.SafeLoader)
    starts = []
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        starts = [(str(key.value), key.start_mark.index) for key, _ in node.value]
    elif node is not None:
        return ""  # {a: 1}: to be written anew
    text, end = "", len(block)
    for key, start in reversed(starts):
        lines = block[start:end].splitlines(keepends=True)
        comments: list[str] = []
        while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
            comments.insert(0, lines.pop())
        if key not in final:
            lines = []
        elif final[key] != there.get(key):
            lines = [_dumped({key: final[key]}, line)]
        text, end = "".join([*lines, *comments]) + text, start
    text = block[:end] + text
    new = {key: value for key, value in final.items() if key not in there}
    if text and new and not text.endswith("\n"):
        text += line
    return text + _dumped(new, line)


def _notices(
    parts: _Parts, where: str, added: Mapping[str, Any], ours: Mapping[str, Any]
) -> list[str]:
    if not parts.has_words and not parts.front:
        return []
    notices = []
    if parts.ours is None and parts.has_words:
        notices.append(f"{where}: your text stays; ours is put below it, between markers.")
    elif parts.has_words:
        notices.append(f"{where}: your text stays; what is between our markers is written anew.")
    lost = [
        key
        for key, value in ours.items()
        if key != "tags" and key not in added and parts.front.get(key) != value
    ]
    if lost:
        notices.append(f"{where}: your own front matter counts for {', '.join(lost)}.")
    return notices
