"""Room 1, ingest: sources, validation with quarantine, leak-free splits."""
