"""How state gets from the primary to the backups, and survives."""
