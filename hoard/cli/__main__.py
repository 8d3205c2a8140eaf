"""`python -m hoard.cli`."""

from hoard.cli import main

main()
