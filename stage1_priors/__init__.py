"""Stage 1: ask a frozen multimodal model for a box per (image, expression) pair and write soft priors to the store."""
