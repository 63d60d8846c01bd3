"""python -m dydit_cli"""

from dydit_cli.cli.app import main

if __name__ == "__main__":
    main()
