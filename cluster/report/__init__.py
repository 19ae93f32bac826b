"""Reports of runs, comparisons and fidelity: records, and the tables, pages and pictures made of them."""
