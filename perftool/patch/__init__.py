"""From measured settings to a unified diff of the user's own files."""
