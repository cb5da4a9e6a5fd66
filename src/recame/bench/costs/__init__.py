"""What a method costs on a machine."""
