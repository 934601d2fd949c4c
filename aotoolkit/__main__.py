"""`python -m aotoolkit` is the command `aotoolkit`."""

from aotoolkit.cli import main

main()
