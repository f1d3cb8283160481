"""`python -m llmpq.cli` is `llmpq`."""

from llmpq.cli import main

main()
