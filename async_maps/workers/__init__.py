"""The worker processes, and the memory that they share with the main process."""
