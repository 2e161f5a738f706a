"""`python -m latentia` is the command `latentia`, so `accelerate launch -m latentia evaluate ...` runs it on many."""

from latentia.commands.main import main

if __name__ == "__main__":
    main()
