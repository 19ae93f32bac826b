"""Images that a request names by URL: fetched only from where the configuration allows, and never from inside."""
