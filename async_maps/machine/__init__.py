"""What this machine, or the container on it, allows: cores, memory, processes, open files. Imports nothing of ours."""
