"""Tokens: what callers of the service prove themselves by. Kept in the store, as hashes; read by every replica."""
