"""What the commands print for people: tables and sentences made from the rooms' results."""
