"""`python -m comfyd`."""

from comfyd.cli.main import main

if __name__ == "__main__":
    main()
