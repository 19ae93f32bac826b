"""Makes experts and measures them: data, fine-tuning, and lanes on Ray that train many tasks. Imports fusion."""
