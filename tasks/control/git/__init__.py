"""The files that the control machine keeps in git: the lock, the goldens, their signatures."""
