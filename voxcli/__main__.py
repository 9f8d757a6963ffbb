"""`python -m voxcli` is `voxcli`."""

from voxcli.cli import main

main()
