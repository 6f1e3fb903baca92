"""``python -m mpiconv``: the same as the ``mpiconv`` command."""

from mpiconv.cli import main

raise SystemExit(main())
