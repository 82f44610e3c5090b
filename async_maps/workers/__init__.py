"""The worker processes, and the memory they share with the main process."""
