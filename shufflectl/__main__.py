"""Run the command line with ``python -m shufflectl``."""

from shufflectl.cli import main

if __name__ == "__main__":
    main()
