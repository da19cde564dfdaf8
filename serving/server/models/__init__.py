"""Which versions there are, and how they are loaded."""
