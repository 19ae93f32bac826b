"""Bodies of requests: forms, JSON and single images, plain or in gzip, and never more bytes than the limit."""
