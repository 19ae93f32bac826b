"""What a person reads after a command: figures, tables, pages and pictures of runs, comparisons and fidelity."""
