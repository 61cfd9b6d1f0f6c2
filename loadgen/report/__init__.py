"""Views of a run: the terminal, the page, the live line, the comparison. They read a RunResult and change nothing."""
