"""`python -m recame`: the command line, for `torchrun -m recame` too."""

from recame.cli import main

if __name__ == "__main__":
    main()
