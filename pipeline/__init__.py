"""The engine and the command line: recipe, plan, units, executors, storage, progress. Knows no text."""
