"""python -m dydit_cli"""

from __future__ import annotations

from dydit_cli.cli.app import main

if __name__ == "__main__":
    main()
