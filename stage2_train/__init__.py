"""Stage 2: train a referring segmentor from few masks, many unlabelled pairs and the prior store."""
