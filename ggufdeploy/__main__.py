"""`python -m ggufdeploy`."""

from ggufdeploy.cli import entry

if __name__ == "__main__":
    entry()
