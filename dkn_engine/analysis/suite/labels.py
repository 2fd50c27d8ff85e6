"""Names of models, files of facts and runs, as folders and files of a grid are called."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Collection, Sequence

from dkn_engine.files.local_paths import local_path

# Kinds of files of facts. What stands behind the last dot of a model belongs to its name, as in
# Llama-3.2-1B.
_KINDS = (".json", ".jsonl", ".csv", ".tsv", ".txt")
# What lies beside the runs; also any table, whose names end in .csv.
_TAKEN = ("figures", "report.html")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)
_LONGEST = 80  # letters; a figure's name adds its analysis, and file systems stop at 255 bytes


def labels(
    models: Sequence[str], sources: Sequence[str], presets: Sequence[str]
) -> dict[tuple[int, int, str], str]:
    """The name of each run's folder: what differs between the runs, and always the model.

    Args:
        models: ``"demo"``, hub ids or paths.
        sources: ``"demo"`` or files of facts.
        presets: names of settings.

    Returns:
        Names by (index of the model, index of the source, preset), all of them different on file
        systems that do not tell capitals, too.
    """
    names, origins = short_names(models), short_names(sources, files=True)
    keys = list(itertools.product(range(len(models)), range(len(sources)), presets))
    joined = [
        "-".join(
            [
                names[m],
                *([origins[s]] if len(sources) > 1 else []),
                *([preset] if len(presets) > 1 else []),
            ]
        )
        for m, s, preset in keys
    ]
    return dict(zip(keys, _distinct(joined), strict=True))


def short_names(names: Sequence[str], *, files: bool = False) -> list[str]:
    """Last parts of hub ids or paths, each a file name of its own; the second of equal ones ``-2``.

    Args:
        names: hub ids or paths.
        files: they are of files of facts, whose suffix says their format.
    """
    return _distinct([_short(name, files=files) for name in names], _TAKEN)


def _short(name: str, *, files: bool) -> str:
    path = local_path(name)
    if path.name in {"", ".."}:  # a path such as ".": the folder it leads to has the name
        path = path.resolve()
    kept = path.stem if files and path.suffix.lower() in _KINDS else path.name
    kept = unicodedata.normalize("NFC", kept)  # one spelling of letters with accents
    kept = re.sub(r"[^\w.-]+", "-", kept)[:_LONGEST].strip(".-") or "unnamed"
    # Windows opens a device of such a name, whatever follows the dot.
    return f"_{kept}" if _DEVICE.match(kept) else kept


def _distinct(names: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """The same names, with a number where one is taken or was there already."""
    found: list[str] = []
    seen = {name.casefold() for name in taken}  # some file systems do not tell capitals
    for name in names:
        number, unique = 2, name
        while unique.casefold() in seen or unique.casefold().endswith(".csv"):
            unique, number = f"{name}-{number}", number + 1
        seen.add(unique.casefold())
        found.append(unique)
    return found
