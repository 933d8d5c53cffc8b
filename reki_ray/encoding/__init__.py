"""Room 4, encode: knowledge text to representation r."""
