"""HTML pages: one self-contained file each, written with the standard library alone."""
