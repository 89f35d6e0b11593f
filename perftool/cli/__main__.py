"""`python -m perftool.cli`."""

from perftool.cli import main

main()
