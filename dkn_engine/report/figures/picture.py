"""A matplotlib figure that a notebook shows although pyplot does not know of it."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

_DPI = 200


class Picture(Figure):
    """A figure that is shown as a PNG where it is a cell's value."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=_DPI)
        return buffer.getvalue(), {"width": round(96 * self.get_figwidth())}
