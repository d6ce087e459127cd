"""``python -m evalswap``."""

from evalswap.cli import main

raise SystemExit(main())
