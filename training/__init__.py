"""Makes experts and measures them: data, fine-tuning, and the lanes on Ray that run many at once. Imports fusion."""
