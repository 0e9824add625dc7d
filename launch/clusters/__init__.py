"""Parts that launch.slurm, launch.tpu and launch.gke share."""
