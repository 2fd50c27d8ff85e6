"""The program as ``python -m dkn_engine`` and ``dkn-engine``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dkn_engine.run.build_info import why_broken


def main(argv: Sequence[str] | None = None) -> int:
    """Run :func:`dkn_engine.cli.main.main`, or say in one line why it cannot be imported.

    ``dkn-engine info`` then works all the same.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    try:
        from dkn_engine.cli import main as cli
    except (ImportError, OSError) as error:
        broken = why_broken(error)
        if broken is None:
            raise
        return _without_program(sys.argv[1:] if argv is None else argv, broken)
    return cli.main(argv)


def _without_program(argv: Sequence[str], broken: str) -> int:
    from dkn_engine.cli.info import InfoOptions, info

    if argv and argv[0] == "info":
        return info(InfoOptions(json="--json" in argv))
    sys.stderr.write(f"dkn-engine: error: {' '.join(broken.split())}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
