"""The comparison of cells: its tasks, a training of many models at once, timing, statistics and the report."""
