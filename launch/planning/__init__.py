"""What `launch.plan` is made of: read the compiled step, add up its bytes, and bound its time."""
