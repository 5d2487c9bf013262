"""What the parser of flags says, in one line."""

from __future__ import annotations

import re


def one_line(box: str) -> str:
    """Return what the parser said in a framed box of several lines, as one line.

    The first section says what is wrong; of the rest only a flag that may have been meant is kept.

    Example:
        >>> print(one_line('''
        ... ╭─ Unrecognized options ───────╮
        ... │ Unrecognized options: --lrr  │
        ... │ ──────────────────────────── │
        ... │ Perhaps you meant:           │
        ... │     --lr FLOAT               │
        ... ╰──────────────────────────────╯'''))
        unrecognized options: --lrr: perhaps you meant --lr
    """
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)  # on a terminal it is coloured
    _, *lines = [line.strip("╭╮│╰╯ ") for line in box.strip().splitlines()] or [""]  # the first is a title
    # Rules part the sections; a terminal that knows no box drawing has them of -, and no frame.
    sections = [part for part in re.split(r"^[─-]+$", "\n".join(lines), flags=re.MULTILINE) if part.strip()]
    if not sections:
        return "the flags cannot be read; see deltaprop train --help"
    text = (
        " ".join(sections[0].split())
        .removeprefix("Error parsing Arguments: ")
        .removeprefix("Error parsing TrainConfig: ")
        .removesuffix(".")
    )
    text = text.removeprefix("Error parsing ")
    near = [re.search(r"--[\w-]+", section) for section in sections[1:] if "Perhaps you meant" in section]
    hint = f": perhaps you meant {near[0][0]}" if near and near[0] else ""
    return (text if text.startswith("-") else text[0].lower() + text[1:]) + hint
