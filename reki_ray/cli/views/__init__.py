"""Views: results of the library as tables and sentences for the terminal."""
