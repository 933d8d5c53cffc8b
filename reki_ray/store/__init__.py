"""Room 6, publish: versioned augmented vectors."""
