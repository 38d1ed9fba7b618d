"""Solutions, results, and files of solutions."""
