"""What this machine, or a simulated one, has: GPUs, RAM, cores, disk."""
