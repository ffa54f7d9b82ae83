"""Modules as people write them: checkpoint and factory read, recurrent submodules found, the whole made one graph."""
