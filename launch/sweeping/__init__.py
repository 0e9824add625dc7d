"""Parts of launch.sweep: its points, the processes that run them, and what they gave."""
