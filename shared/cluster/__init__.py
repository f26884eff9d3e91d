"""Batch jobs: what a site is like, the scripts, their submission to Slurm, and what their files say afterwards."""
