"""`python -m fedcl`."""

from fedcl.cli import main

if __name__ == "__main__":
    main()
