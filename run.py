"""python run.py CONFIG … = evalswap run CONFIG …"""

import sys

from evalswap.cli import main

raise SystemExit(main(["run", *sys.argv[1:]]))
