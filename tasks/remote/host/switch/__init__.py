"""The program `switch`: it brings a host's service from one release to another, or leaves it as it was."""
