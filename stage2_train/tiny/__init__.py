"""The embedded backbone: its vocabulary, how it is pretrained, and its weights.

Pretraining draws its own scenes (`shared.synth`) from generators keyed `("backbone", seed, index)`; no image of a
RefShapes data set is ever seen.
"""
