"""`python -m comfyd`."""

from comfyd.cli.main import main

main()
