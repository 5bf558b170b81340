"""Runs in a mount namespace of its own: makes the mounts given (JSON lists of words), becomes what follows `--`."""

import json
import os
import subprocess
import sys


def main() -> None:
    given = sys.argv[1:]
    end = given.index("--")
    for words in given[:end]:
        subprocess.run(["mount", *json.loads(words)], check=True)
    os.execvp(given[end + 1], given[end + 1 :])


if __name__ == "__main__":
    main()
