"""`python -m node.cli`: the same commands, for whoever starts them with a certain Python."""

from node.cli.app import main

if __name__ == "__main__":
    main()
